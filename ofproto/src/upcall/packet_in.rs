//! Upcalls for the controllers: what the cookie says and what was frozen for it make a packet-in of each.

use std::sync::Arc;

use dpif::Upcall;
use dpif::odp::{Cookie, CookieKind};
use dpif::offload::Segments;
use openflow::PacketInReason;

use super::handler::failed;
use super::stats::{HandlerStats, count};
use crate::backer::Backer;
use crate::packet_in::PacketIn;
use crate::xlate::EXPLICIT_MISS;

/// Gives a packet to whoever has the controllers' connections; a super-packet as what is on the wire of it.
pub(super) fn deliver(backer: &Backer, stats: &HandlerStats, upcall: &Upcall, cookie: &Cookie) {
    let CookieKind::Controller { dont_send, reason, recirc_id, rule_cookie, controller_id, max_len, .. } = cookie.kind
    else {
        return;
    };
    let sinks = backer.sinks();
    let Some(sink) = sinks.packet_in.as_ref().filter(|_| !dont_send) else { return };
    let state = backer.config().recirc.get(recirc_id);
    let Some((state, frozen)) =
        state.as_ref().and_then(|recirc| Some((recirc.state(), recirc.state().packet_in.as_ref()?)))
    else {
        // The flow is of an earlier configuration, or of an earlier process.
        coverage::inc!("packet_in_no_state");
        count(&stats.counters.packet_in_lost);
        return;
    };
    let (reason, is_table_miss) = match reason {
        EXPLICIT_MISS => (PacketInReason::Action, true),
        reason => match reason_of(reason) {
            Some(reason) => (reason, false),
            None => {
                count(&stats.counters.packet_in_lost);
                failed(backer, format_args!("a packet for the controllers has the unknown reason {reason}"));
                return;
            }
        },
    };
    let segments = match Segments::new(&upcall.packet) {
        Ok(segments) => segments,
        Err(error) => {
            count(&stats.counters.packet_in_lost);
            failed(backer, format_args!("a packet for the controllers can't be made as on the wire: {error}"));
            return;
        }
    };
    for segment in segments {
        let (total_len, mut data) = (segment.data.len(), segment.data);
        if max_len != u16::MAX {
            data.truncate(max_len.into());
        }
        sink.packet_in(PacketIn {
            bridge: Arc::clone(&state.bridge),
            reason,
            is_table_miss,
            table: frozen.table,
            cookie: rule_cookie.get(),
            controller_id,
            max_len,
            total_len,
            data,
            in_port: state.in_port,
            metadata: state.metadata,
            regs: state.regs,
            key: Box::new(upcall.key),
            userdata: frozen.userdata.clone(),
        });
        count(&stats.counters.packet_in);
    }
}

fn reason_of(number: u16) -> Option<PacketInReason> {
    use PacketInReason as R;
    let all = [R::NoMatch, R::Action, R::InvalidTtl, R::ActionSet, R::Group, R::PacketOut];
    all.into_iter().find(|reason| *reason as u16 == number)
}
