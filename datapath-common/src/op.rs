//! The action program: what a datapath flow does, in the form that every engine runs.
//!
//! Userspace compiles a list of datapath actions (`dpif::Action`) into fixed-size operations. A flow's program lies in its
//! [slot](crate::slot); a longer one goes on in another slot through [`OpKind::Continue`], so its length has no limit but the
//! slots. Every action of the kernel's interface (`enum ovs_action_attr`, `linux/openvswitch.h`) has its kind here from the
//! first day; the compiler of a backend refuses by name what its engine can't run yet.

/// One operation.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Op {
    /// An [`OpKind`] as a number.
    pub kind: u16,
    /// [`OP_LAST`] and what the kind says.
    pub flags: u16,
    /// What the kind says.
    pub arg: u32,
    /// What the kind says.
    pub a: u64,
    /// What the kind says.
    pub b: u64,
}

/// Nothing after this operation touches or sends the packet: it may be consumed.
pub const OP_LAST: u16 = 1;

/// Kinds of operations. The numbers are part of the layout.
#[repr(u16)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpKind {
    /// End of the program. All-zero memory is an empty program: drop.
    End = 0,
    /// Send to datapath port `arg`.
    Output = 1,
    /// Send to userspace with the cookie in the `arg & 0xff` bytes of the [`OpKind::Data`] operations that follow.
    /// `a`: number of the netlink socket (unused by rings). `b`: egress tunnel port, `u64::MAX` where there is none.
    Userspace = 2,
    /// Sixteen bytes of payload of the operation before, in `a` and `b` in memory order.
    Data = 3,
    /// Set bits `b` of key word `arg` to `a`, in key and packet. `a` has no bit outside `b`.
    SetWord = 4,
    /// Push a VLAN tag. `arg`: `tpid | tci << 16`, both as raw network-order values; the tci carries `VLAN_PRESENT`.
    PushVlan = 5,
    /// Remove the outer VLAN tag.
    PopVlan = 6,
    /// Look the packet up again with recirculation id `arg`.
    Recirc = 7,
    /// Compute `dp_hash`. `flags >> 8`: algorithm. `arg`: basis.
    Hash = 8,
    /// Send at most `arg` bytes with the next output.
    Trunc = 9,
    /// Drop the packet. `arg`: the explicit reason (`OVS_ACTION_ATTR_DROP`).
    Drop = 10,
    /// Go on with the program of slot `arg`.
    Continue = 11,
    /// Run the next `a` operations on a clone with a probability of `arg` in 2³².
    Sample = 12,
    /// Connection tracking.
    Ct = 13,
    /// Forget the connection tracking state.
    CtClear = 14,
    /// Push an MPLS label.
    PushMpls = 15,
    /// Pop an MPLS label.
    PopMpls = 16,
    /// Push an Ethernet header.
    PushEth = 17,
    /// Pop the Ethernet header.
    PopEth = 18,
    /// Push an NSH header.
    PushNsh = 19,
    /// Pop the NSH header.
    PopNsh = 20,
    /// Apply a meter.
    Meter = 21,
    /// Run the next `a` operations on a clone.
    Clone = 22,
    /// Branch on the packet's length.
    CheckPktLen = 23,
    /// Push an MPLS label at a given place.
    AddMpls = 24,
    /// Decrement the TTL or branch where it is used up.
    DecTtl = 25,
    /// Set the tunnel key.
    SetTunnel = 26,
    /// Sample to a psample group.
    Psample = 27,
}

/// The kinds that programs run as numbers, for a `match` on [`Op::kind`].
#[allow(missing_docs)]
pub mod kind {
    use super::OpKind;

    pub const END: u16 = OpKind::End as u16;
    pub const OUTPUT: u16 = OpKind::Output as u16;
    pub const USERSPACE: u16 = OpKind::Userspace as u16;
    pub const DATA: u16 = OpKind::Data as u16;
    pub const SET_WORD: u16 = OpKind::SetWord as u16;
    pub const PUSH_VLAN: u16 = OpKind::PushVlan as u16;
    pub const POP_VLAN: u16 = OpKind::PopVlan as u16;
    pub const RECIRC: u16 = OpKind::Recirc as u16;
    pub const HASH: u16 = OpKind::Hash as u16;
    pub const TRUNC: u16 = OpKind::Trunc as u16;
    pub const DROP: u16 = OpKind::Drop as u16;
    pub const CONTINUE: u16 = OpKind::Continue as u16;
}

/// Operations that one slot holds.
pub const SLOT_OPS: usize = 32;
/// Operations that the longest program may have, over all its slots.
pub const MAX_PROGRAM_OPS: usize = 4096;
/// Bytes that the cookie of a userspace action may have.
pub const MAX_COOKIE: usize = 128;

/// `OVS_HASH_ALG_L4`.
pub const HASH_ALG_L4: u16 = 0;
/// `OVS_HASH_ALG_SYM_L4`.
pub const HASH_ALG_SYM_L4: u16 = 1;

impl Op {
    /// An operation without flags and operands.
    pub const fn new(kind: OpKind, arg: u32) -> Self {
        Self { kind: kind as u16, flags: 0, arg, a: 0, b: 0 }
    }

    /// `SetWord`: bits `mask` of key word `word` become `value`.
    pub const fn set_word(word: usize, value: u64, mask: u64) -> Self {
        Self { kind: OpKind::SetWord as u16, flags: 0, arg: word as u32, a: value & mask, b: mask }
    }

    /// `PushVlan`.
    pub const fn push_vlan(vlan: crate::key::Vlan) -> Self {
        Self::new(OpKind::PushVlan, vlan.tpid.0 as u32 | (vlan.tci.0 as u32) << 16)
    }

    /// Whether [`OP_LAST`] is set.
    #[inline(always)]
    pub const fn is_last(&self) -> bool {
        self.flags & OP_LAST != 0
    }
}

/// Why the datapath dropped a packet. The numbers index the counters in [`crate::maps::DpStats`] and are part of the layout.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropReason {
    /// A flow without actions, or one that says drop.
    Flow = 0,
    /// Shorter than an Ethernet header, or a header that promises what isn't there (NSH).
    Malformed = 1,
    /// No live handler takes upcalls.
    UpcallNoHandler = 2,
    /// The port has as many unread upcalls as it may have.
    UpcallCredit = 3,
    /// The handler's ring is full.
    UpcallRingFull = 4,
    /// The packet is larger than an upcall can carry.
    UpcallTooLarge = 5,
    /// Output to a datapath port that is not there.
    NoPort = 6,
    /// Larger than the output device's MTU.
    Mtu = 7,
    /// The kernel refused to send.
    Output = 8,
    /// More recirculations than allowed.
    RecircLimit = 9,
    /// An action does not fit the packet, such as setting a port where the TCP header is cut off.
    Action = 10,
    /// The program entered itself more deeply than allowed.
    Nesting = 11,
    /// An operation that this engine doesn't know. Counted, never silent: it would be a bug of the compiler.
    UnknownOp = 12,
    /// The frame arrived for a port that is not configured.
    UnknownInPort = 13,
    /// A packet for userspace execution whose slot was not armed.
    Execute = 14,
    /// A meter's rate was exceeded.
    Meter = 15,
}

/// Number of drop counters.
pub const DROP_REASONS: usize = 16;

impl DropReason {
    /// All reasons with the names under which they are shown.
    pub const ALL: [(Self, &'static str); 16] = [
        (Self::Flow, "flow"),
        (Self::Malformed, "malformed"),
        (Self::UpcallNoHandler, "upcall-no-handler"),
        (Self::UpcallCredit, "upcall-credit"),
        (Self::UpcallRingFull, "upcall-ring-full"),
        (Self::UpcallTooLarge, "upcall-too-large"),
        (Self::NoPort, "no-port"),
        (Self::Mtu, "mtu"),
        (Self::Output, "output"),
        (Self::RecircLimit, "recirc-limit"),
        (Self::Action, "action"),
        (Self::Nesting, "nesting"),
        (Self::UnknownOp, "unknown-op"),
        (Self::UnknownInPort, "unknown-in-port"),
        (Self::Execute, "execute"),
        (Self::Meter, "meter"),
    ];
}
