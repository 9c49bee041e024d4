//! What a port has to do with VLANs.
//!
//! A port is of one of four kinds. An *access* port carries one VLAN, untagged. A *trunk* carries several, tagged. The
//! two *native* kinds are trunks that, besides, take untagged frames into one VLAN, and send that VLAN tagged or
//! untagged. A person says a tag, a set of trunks, or a kind by name; [`PortVlan::effective`] says what that means.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The largest VLAN: twelve bits.
const MAX: u16 = 4095;

/// A VLAN, 0 to 4095. VLAN 0 is the frames without a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Vlan(u16);

impl Vlan {
    /// The VLAN as a number, less than 4096.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// What is wrong with a VLAN or a set of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VlanError {
    /// A number that no VLAN has.
    #[error("VLAN {0} is out of range: it must be 0 to {MAX}")]
    Range(i64),
    /// Text that is not a number.
    #[error("{0:?} is not a VLAN: expected a number from 0 to {MAX}")]
    NotANumber(String),
    /// A range whose end lies before its start.
    #[error("VLAN range {0}-{1} is backwards")]
    Backwards(u16, u16),
    /// No VLAN where at least one is needed.
    #[error("no VLAN given: expected VLANs like 10, 10-20 or 10-20+30")]
    Empty,
    /// A name that is no kind of port.
    #[error("{0:?} is not a VLAN mode: expected access, trunk, native-tagged or native-untagged")]
    Mode(String),
    /// A kind of port that the switch doesn't have.
    #[error("VLAN mode {0} is not supported: use access, trunk, native-tagged or native-untagged")]
    UnsupportedMode(&'static str),
}

impl TryFrom<i64> for Vlan {
    type Error = VlanError;

    fn try_from(number: i64) -> Result<Vlan, VlanError> {
        match u16::try_from(number) {
            Ok(vlan) if vlan <= MAX => Ok(Vlan(vlan)),
            _ => Err(VlanError::Range(number)),
        }
    }
}

impl FromStr for Vlan {
    type Err = VlanError;

    fn from_str(text: &str) -> Result<Vlan, VlanError> {
        let number: i64 = text.parse().map_err(|_| VlanError::NotANumber(text.to_owned()))?;
        Vlan::try_from(number)
    }
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of VLANs. Its text is ranges joined by `+`: `10-20+30`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VlanSet(BTreeSet<Vlan>);

impl VlanSet {
    /// Whether no VLAN is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `vlan` is in the set.
    pub fn contains(&self, vlan: Vlan) -> bool {
        self.0.contains(&vlan)
    }

    /// The VLANs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Vlan> + '_ {
        self.0.iter().copied()
    }

    /// The longest runs of consecutive VLANs, first and last included, ascending.
    fn runs(&self) -> Vec<(u16, u16)> {
        let mut runs: Vec<(u16, u16)> = Vec::new();
        for Vlan(vlan) in self.iter() {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == vlan => *last = vlan,
                _ => runs.push((vlan, vlan)),
            }
        }
        runs
    }
}

impl FromIterator<Vlan> for VlanSet {
    fn from_iter<I: IntoIterator<Item = Vlan>>(vlans: I) -> VlanSet {
        VlanSet(vlans.into_iter().collect())
    }
}

impl FromStr for VlanSet {
    type Err = VlanError;

    fn from_str(text: &str) -> Result<VlanSet, VlanError> {
        let mut set = BTreeSet::new();
        for part in text.split('+') {
            if part.is_empty() {
                return Err(VlanError::Empty);
            }
            let (first, last): (Vlan, Vlan) = match part.split_once('-') {
                Some((first, last)) => (first.parse()?, last.parse()?),
                None => (part.parse()?, part.parse()?),
            };
            if last < first {
                return Err(VlanError::Backwards(first.0, last.0));
            }
            set.extend((first.0..=last.0).map(Vlan));
        }
        Ok(VlanSet(set))
    }
}

impl fmt::Display for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.runs().into_iter().enumerate() {
            let plus = if i == 0 { "" } else { "+" };
            match first == last {
                true => write!(f, "{plus}{first}")?,
                false => write!(f, "{plus}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The kind of a port, by the field's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VlanMode {
    /// One VLAN, untagged on the wire.
    Access,
    /// Several VLANs, tagged on the wire.
    Trunk,
    /// A trunk whose untagged frames belong to the native VLAN, which leaves tagged.
    NativeTagged,
    /// A trunk whose untagged frames belong to the native VLAN, which leaves untagged.
    NativeUntagged,
}

impl VlanMode {
    const NAMES: [(VlanMode, &'static str); 4] = [
        (VlanMode::Access, "access"),
        (VlanMode::Trunk, "trunk"),
        (VlanMode::NativeTagged, "native-tagged"),
        (VlanMode::NativeUntagged, "native-untagged"),
    ];

    /// The name of this kind.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(mode, _)| *mode == self).map_or("", |(_, name)| name)
    }
}

impl FromStr for VlanMode {
    type Err = VlanError;

    fn from_str(text: &str) -> Result<VlanMode, VlanError> {
        match Self::NAMES.iter().find(|(_, name)| *name == text) {
            Some((mode, _)) => Ok(*mode),
            None if text == "dot1q-tunnel" => Err(VlanError::UnsupportedMode("dot1q-tunnel")),
            None => Err(VlanError::Mode(text.to_owned())),
        }
    }
}

/// What was said about a port's VLANs. Nothing said is a trunk of all VLANs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortVlan {
    /// The VLAN of an access port, or the native VLAN.
    pub tag: Option<Vlan>,
    /// The VLANs of a trunk; empty is all of them.
    pub trunks: VlanSet,
    /// The kind, where it was named.
    pub mode: Option<VlanMode>,
}

/// What a port does with VLANs: the meaning of a [`PortVlan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveVlan {
    /// The kind of the port.
    pub mode: VlanMode,
    /// The VLAN of untagged frames; 0 for a trunk.
    pub tag: Vlan,
    /// The VLANs carried tagged; `None` is all. Empty for an access port.
    pub trunks: Option<VlanSet>,
}

impl PortVlan {
    /// The meaning, as the field defines it: without a kind named, a tag makes an access port and its absence a
    /// trunk; a trunk has no use for a tag, an access port none for trunks; a missing tag is VLAN 0; the native VLAN
    /// is always carried.
    pub fn effective(&self) -> EffectiveVlan {
        let default = if self.tag.is_some() { VlanMode::Access } else { VlanMode::Trunk };
        let mode = self.mode.unwrap_or(default);
        let tag = match mode {
            VlanMode::Trunk => Vlan(0),
            _ => self.tag.unwrap_or_default(),
        };
        let trunks = match mode {
            VlanMode::Access => Some(VlanSet::default()),
            _ if self.trunks.is_empty() => None,
            VlanMode::Trunk => Some(self.trunks.clone()),
            _ => Some(self.trunks.iter().chain([tag]).collect()),
        };
        EffectiveVlan { mode, tag, trunks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_vlans_is_read_and_written_canonically() {
        for (text, canonical) in [
            ("10", "10"),
            ("0-3", "0-3"),
            ("5-5", "5"),
            ("30+10-12+13", "10-13+30"),
            ("1+1", "1"),
            ("0-4095", "0-4095"),
            ("4095", "4095"),
        ] {
            assert_eq!(text.parse::<VlanSet>().unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn a_bad_set_of_vlans_is_refused_with_its_reason() {
        for (text, error) in [
            ("", VlanError::Empty),
            ("1+", VlanError::Empty),
            ("4096", VlanError::Range(4096)),
            ("1-70000", VlanError::Range(70_000)),
            ("9-3", VlanError::Backwards(9, 3)),
            ("-3", VlanError::NotANumber(String::new())),
            ("a", VlanError::NotANumber("a".to_owned())),
            ("1-2-3", VlanError::NotANumber("2-3".to_owned())),
            ("1,2", VlanError::NotANumber("1,2".to_owned())),
        ] {
            assert_eq!(text.parse::<VlanSet>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn the_meaning_of_tag_trunks_and_mode_is_the_fields() {
        let vlan = |tag: &str, trunks: &str, mode: &str| PortVlan {
            tag: (!tag.is_empty()).then(|| tag.parse().unwrap()),
            trunks: if trunks.is_empty() { VlanSet::default() } else { trunks.parse().unwrap() },
            mode: (!mode.is_empty()).then(|| mode.parse().unwrap()),
        };
        // What was said: tag, trunks, mode. What it means: mode, tag, trunks ("all" is every VLAN).
        for (said, mode, tag, trunks) in [
            (["", "", ""], VlanMode::Trunk, 0, "all"),
            (["", "5-6", ""], VlanMode::Trunk, 0, "5-6"),
            (["7", "", ""], VlanMode::Access, 7, ""),
            (["7", "5", ""], VlanMode::Access, 7, ""),
            (["7", "5", "trunk"], VlanMode::Trunk, 0, "5"),
            (["", "", "access"], VlanMode::Access, 0, ""),
            (["7", "5", "native-tagged"], VlanMode::NativeTagged, 7, "5+7"),
            (["7", "", "native-untagged"], VlanMode::NativeUntagged, 7, "all"),
            (["", "5", "native-untagged"], VlanMode::NativeUntagged, 0, "0+5"),
        ] {
            let effective = vlan(said[0], said[1], said[2]).effective();
            let text = effective.trunks.map_or("all".to_owned(), |set| set.to_string());
            assert_eq!((effective.mode, effective.tag.get(), text.as_str()), (mode, tag, trunks), "{said:?}");
        }
    }

    #[test]
    fn a_mode_that_the_switch_lacks_is_refused_by_name() {
        assert_eq!("dot1q-tunnel".parse::<VlanMode>(), Err(VlanError::UnsupportedMode("dot1q-tunnel")));
        assert_eq!("trunks".parse::<VlanMode>(), Err(VlanError::Mode("trunks".to_owned())));
    }
}
