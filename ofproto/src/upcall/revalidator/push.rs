//! What flows counted, given to whom it belongs.

use dpif::FlowStats;

use crate::backer::Backer;
use crate::upcall::handler::failed;
use crate::upcall::ukey::{State, Ukey};
use crate::xlate::Xlate;

/// A counter beyond this may have wrapped when it is found smaller.
const NEARLY_WRAPPED: u64 = u64::MAX / 4 * 3;

/// Gives what a flow counted since the last time to the rules, tables, addresses and ports that it was translated by.
pub(super) fn push(backer: &Backer, ukey: &Ukey, state: &mut State, stats: &FlowStats) {
    let before = state.pushed;
    if *stats == before {
        return;
    }
    // Nothing is younger than what is known already: one that was swept is judged by that.
    state.pushed = FlowStats { used_ms: stats.used_ms.max(before.used_ms), ..*stats };
    if stats.packets < before.packets && before.packets < NEARLY_WRAPPED {
        coverage::inc!("ukey_invalid_stat_reset");
        let (ufid, from, to) = (ukey.ufid(), before.packets, stats.packets);
        failed(backer, format_args!("Unexpected jump in packet stats from {from} to {to} when handling ukey {ufid}"));
        return;
    }
    let packets = stats.packets.wrapping_sub(before.packets);
    let bytes = stats.bytes.wrapping_sub(before.bytes);
    if packets > 0 && Xlate::apply_effects(&state.effects, packets, bytes, stats.used_ms) {
        backer.learned();
    }
}
