//! The life of a ukey, and the reasons for which it ends.

use std::fmt;

/// Where a ukey is in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    /// Nobody else knows of it.
    Created,
    /// In the table; its flow is being installed.
    Visible,
    /// Its flow is in the datapath.
    Operational,
    /// Its flow is in the datapath with other actions than those that were wanted.
    Inconsistent,
    /// Its flow is being deleted.
    Evicting,
    /// Its flow is gone; it goes with the next sweep, or a new ukey takes its place.
    Evicted,
    /// Out of the table.
    Deleted,
}

impl Phase {
    /// Whether a ukey may go from here to there at once.
    pub(crate) fn may_become(self, to: Self) -> bool {
        use Phase::{Created, Deleted, Evicted, Evicting, Inconsistent, Operational, Visible};
        matches!(
            (self, to),
            (Created, Visible)
                | (Visible, Operational | Evicted)
                | (Operational, Inconsistent | Evicting)
                | (Inconsistent, Evicting)
                | (Evicting, Evicted)
                | (Evicted, Deleted)
        )
    }
}

impl Phase {
    /// Whether its flow does what it is for, or is about to.
    pub(crate) fn is_in_use(self) -> bool {
        matches!(self, Self::Visible | Self::Operational)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Visible => "visible",
            Self::Operational => "operational",
            Self::Inconsistent => "inconsistent",
            Self::Evicting => "evicting",
            Self::Evicted => "evicted",
            Self::Deleted => "deleted",
        })
    }
}

/// Why a megaflow was deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DelReason {
    /// Translation asked for the flow not to be cached.
    AvoidCaching,
    /// The key says too little for a translation.
    BadFit,
    /// No packet came for too long.
    Idle,
    /// There were twice as many flows as allowed.
    FlowLimit,
    /// It is wider than a translation allows now.
    Wildcarded,
    /// Its port is on no bridge any more.
    NoOfproto,
    /// An operator asked for it.
    Purge,
    /// Translating it again was not worth its packets.
    TooExpensive,
    /// The datapath refused to modify it.
    UpdateFailed,
    /// It can't be translated.
    XlateError,
    /// The datapath hasn't shown it for several passes.
    MissingInDatapath,
    /// The datapath refused to install it.
    InstallFailed,
    /// Its mask is among those of least use, and others are waiting for a mask.
    MaskEvicted,
}

impl DelReason {
    /// All of them, in the order of [`DelReason::code`].
    pub(crate) const ALL: [Self; 13] = [
        Self::AvoidCaching,
        Self::BadFit,
        Self::Idle,
        Self::FlowLimit,
        Self::Wildcarded,
        Self::NoOfproto,
        Self::Purge,
        Self::TooExpensive,
        Self::UpdateFailed,
        Self::XlateError,
        Self::MissingInDatapath,
        Self::InstallFailed,
        Self::MaskEvicted,
    ];

    /// The number that tracing scripts know it by (`enum flow_del_reason`); 12 and 13 are ours: a ukey whose flow never was, and a mask that had to go.
    #[allow(dead_code)]
    pub(crate) fn code(self) -> usize {
        self as usize + 1
    }
}

impl fmt::Display for DelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AvoidCaching => "cache avoidance flag set",
            Self::BadFit => "bad ODP flow fit",
            Self::Idle => "flow idle timeout",
            Self::FlowLimit => "kill all flows condition reached",
            Self::Wildcarded => "flow needs a narrower wildcard mask",
            Self::NoOfproto => "bridge not found",
            Self::Purge => "user requested flow deletion",
            Self::TooExpensive => "too expensive to revalidate",
            Self::UpdateFailed => "datapath update failed",
            Self::XlateError => "flow translation error",
            Self::MissingInDatapath => "flow is missing from the datapath",
            Self::InstallFailed => "datapath refused the flow",
            Self::MaskEvicted => "mask of least use evicted",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 7] = [
        Phase::Created,
        Phase::Visible,
        Phase::Operational,
        Phase::Inconsistent,
        Phase::Evicting,
        Phase::Evicted,
        Phase::Deleted,
    ];

    #[test]
    fn a_life_goes_forward_only_and_every_way_ends() {
        for (from, to) in PHASES.iter().flat_map(|from| PHASES.map(|to| (*from, to))) {
            assert!(!from.may_become(to) || from < to, "{from:?} to {to:?}");
        }
        for from in &PHASES[..6] {
            assert!(PHASES.iter().any(|to| from.may_become(*to)), "{from:?} is an end");
        }
        assert!(PHASES.iter().all(|to| !Phase::Deleted.may_become(*to)));
    }

    #[test]
    fn reasons_have_the_numbers_of_the_tracing_scripts() {
        let codes = DelReason::ALL.map(DelReason::code);
        assert_eq!(codes, core::array::from_fn(|i| i + 1));
        assert_eq!((DelReason::Idle.code(), DelReason::MissingInDatapath.code()), (3, 11));
    }
}
