//! What an upcall is: the datapath says whether no flow matched or an action sent the packet up, and which action that was the
//! cookie says.

use dpif::odp::{COOKIE_LEN, Cookie, CookieKind};
use dpif::{Upcall, UpcallKind};

/// What an upcall is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum UpcallClass {
    /// The datapath has no flow for the packet.
    Miss,
    /// Each packet of the flow comes up, for these reasons (`SlowPath` bits).
    SlowPath(u32),
    /// It is for something that isn't there: samplers, controllers.
    Unsupported(&'static str),
    /// The cookie is none.
    Bad,
}

impl UpcallClass {
    /// The class of an upcall. A cookie that is shorter or longer than cookies are is none.
    pub(super) fn of(upcall: &Upcall) -> Self {
        match upcall.kind {
            UpcallKind::Miss => Self::Miss,
            UpcallKind::Action if upcall.cookie.len() != COOKIE_LEN => Self::Bad,
            UpcallKind::Action => match Cookie::decode(&upcall.cookie).map(|cookie| cookie.kind) {
                Some(CookieKind::SlowPath(reasons)) => Self::SlowPath(reasons),
                Some(CookieKind::SFlow { .. }) => Self::Unsupported("sFlow"),
                Some(CookieKind::FlowSample { .. }) => Self::Unsupported("sample actions"),
                Some(CookieKind::Ipfix { .. }) => Self::Unsupported("IPFIX"),
                Some(CookieKind::Controller { .. }) => Self::Unsupported("controllers"),
                None => Self::Bad,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpif::odp::SlowPath;

    #[test]
    fn a_cookie_has_exactly_one_size() {
        let cookie = Cookie::new(CookieKind::SlowPath(SlowPath::ACTION | SlowPath::MATCH)).encode();
        let class = |cookie: &[u8]| {
            UpcallClass::of(&Upcall { kind: UpcallKind::Action, cookie: cookie.to_vec(), ..Upcall::default() })
        };
        assert_eq!(class(&cookie), UpcallClass::SlowPath(SlowPath::ACTION | SlowPath::MATCH));
        for bad in [&cookie[..47], &[&cookie[..], &[0]].concat(), &[], &[9; 48]] {
            assert_eq!(class(bad), UpcallClass::Bad, "{} bytes", bad.len());
        }
        let sample = Cookie::new(CookieKind::Ipfix { output_port: 1 }).encode();
        assert_eq!(class(&sample), UpcallClass::Unsupported("IPFIX"));
        assert_eq!(UpcallClass::of(&Upcall::default()), UpcallClass::Miss);
    }
}
