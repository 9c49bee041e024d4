//! What an upcall is: the datapath says whether no flow matched or an action sent the packet up, and which action that was the
//! cookie says.

use dpif::odp::{COOKIE_LEN, Cookie, CookieKind};
use dpif::{Upcall, UpcallKind};

use super::stats::{Counters, count};

/// What an upcall is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum UpcallClass {
    /// The datapath has no flow for the packet.
    Miss,
    /// Each packet of the flow comes up, for these reasons (`SlowPath` bits).
    SlowPath(u32),
    /// It is for an exporter.
    Sample(Cookie),
    /// It is for the controllers.
    Controller(Cookie),
    /// The cookie is none.
    Bad,
}

impl UpcallClass {
    /// The class of an upcall. A cookie that is shorter or longer than cookies are is none.
    pub(super) fn of(upcall: &Upcall) -> Self {
        match upcall.kind {
            UpcallKind::Miss => Self::Miss,
            UpcallKind::Action if upcall.cookie.len() != COOKIE_LEN => Self::Bad,
            UpcallKind::Action => match Cookie::decode(&upcall.cookie) {
                None => Self::Bad,
                Some(cookie) => match cookie.kind {
                    CookieKind::SlowPath(reasons) => Self::SlowPath(reasons),
                    CookieKind::SFlow { .. } | CookieKind::FlowSample { .. } | CookieKind::Ipfix { .. } => {
                        Self::Sample(cookie)
                    }
                    CookieKind::Controller { .. } => Self::Controller(cookie),
                },
            },
        }
    }

    /// Counts it.
    pub(super) fn count(&self, counters: &Counters) {
        let kind = match self {
            Self::Miss => &counters.missed,
            Self::SlowPath(_) => &counters.slow_path,
            Self::Controller(_) => &counters.controller,
            Self::Sample(cookie) => match cookie.kind {
                CookieKind::SFlow { .. } => &counters.sflow,
                CookieKind::FlowSample { .. } => &counters.flow_sample,
                _ => &counters.ipfix,
            },
            Self::Bad => {
                coverage::inc!("upcall_unknown_cookie");
                &counters.bad_cookie
            }
        };
        count(kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_common::{Be16, Be64};
    use dpif::odp::SlowPath;
    use std::sync::atomic::Ordering;

    fn class(cookie: &[u8]) -> UpcallClass {
        UpcallClass::of(&Upcall { kind: UpcallKind::Action, cookie: cookie.to_vec(), ..Upcall::default() })
    }

    #[test]
    fn a_cookie_has_exactly_one_size() {
        let cookie = Cookie::new(CookieKind::SlowPath(SlowPath::ACTION | SlowPath::MATCH)).encode();
        assert_eq!(class(&cookie), UpcallClass::SlowPath(SlowPath::ACTION | SlowPath::MATCH));
        for bad in [&cookie[..47], &[&cookie[..], &[0]].concat(), &cookie[..8], &[], &[9; 48], &[0; 48], &[6; 128]] {
            assert_eq!(class(bad), UpcallClass::Bad, "{} bytes", bad.len());
        }
    }

    #[test]
    fn each_kind_is_told_from_the_others_and_counted() {
        let sample = CookieKind::FlowSample {
            probability: 1,
            collector_set_id: 2,
            obs_domain_id: 3,
            obs_point_id: 4,
            output_port: 5,
            direction: 1,
        };
        let controller = CookieKind::Controller {
            dont_send: false,
            continuation: false,
            reason: 1,
            recirc_id: 2,
            rule_cookie: Be64::new(3),
            controller_id: 4,
            max_len: 5,
        };
        let counters = Counters::default();
        let with = |kind| Cookie { in_port: 7, bridge: 9, kind };
        for (kind, class_of) in [
            (CookieKind::SFlow { vlan_tci: Be16::new(5), output: 6 }, UpcallClass::Sample as fn(Cookie) -> UpcallClass),
            (sample, UpcallClass::Sample),
            (CookieKind::Ipfix { output_port: 1 }, UpcallClass::Sample),
            (controller, UpcallClass::Controller),
        ] {
            let class = class(&with(kind).encode());
            assert_eq!(class, class_of(with(kind)));
            class.count(&counters);
        }
        for reason in [SlowPath::CFM, SlowPath::BFD, SlowPath::LACP, SlowPath::STP, SlowPath::LLDP] {
            let class = class(&with(CookieKind::SlowPath(reason)).encode());
            assert_eq!(class, UpcallClass::SlowPath(reason));
            class.count(&counters);
        }
        UpcallClass::of(&Upcall::default()).count(&counters);
        class(&[]).count(&counters);
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let c = &counters;
        assert_eq!([&c.missed, &c.sflow, &c.flow_sample, &c.ipfix, &c.controller, &c.bad_cookie].map(of), [1; 6]);
        assert_eq!(of(&c.slow_path), 5);
    }
}
