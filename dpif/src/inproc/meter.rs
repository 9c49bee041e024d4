//! The meters of the in-process datapath.
//!
//! A bucket holds bits, or thousandths of a packet: then a rate (kilobits or packets per second) times milliseconds is what
//! flows into it, without a division.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::Result;
use crate::error::DpifError;
use crate::meter::{BandStats, MeterConfig, MeterFeatures, MeterStats, MeterUnit};

/// All meters of a datapath, and its dice.
pub(super) struct Meters {
    meters: RwLock<HashMap<u32, Arc<Mutex<Meter>>>>,
    dice: AtomicU64,
}

struct Meter {
    unit: MeterUnit,
    bands: Vec<Band>,
    packets: u64,
    bytes: u64,
    /// When the buckets were filled last.
    filled_ms: u64,
}

struct Band {
    rate: u64,
    size: u64,
    bucket: u64,
    dropped: BandStats,
}

/// What a packet, or a kilobit, of a burst is in a bucket.
const PER_UNIT: u64 = 1000;

impl Meters {
    pub(super) const FEATURES: MeterFeatures = MeterFeatures { max_meters: 1 << 16, max_bands: 8 };

    /// No meters. `seed`: of the dice.
    pub(super) fn new(seed: u64) -> Self {
        Self { meters: RwLock::default(), dice: AtomicU64::new(seed) }
    }

    pub(super) fn set(&self, id: u32, config: &MeterConfig, now_ns: u64) -> Result<()> {
        let MeterFeatures { max_meters, max_bands } = Self::FEATURES;
        if id >= max_meters {
            return Err(DpifError::Invalid(format!("meter {id} is too high: ids are lower than {max_meters}")));
        }
        if config.bands.is_empty() || config.bands.len() > max_bands as usize {
            let n = config.bands.len();
            return Err(DpifError::Invalid(format!("meter {id} has {n} bands: expected 1 to {max_bands}")));
        }
        if config.bands.iter().any(|band| band.rate == 0) {
            return Err(DpifError::Invalid(format!("meter {id} has a band of rate 0")));
        }
        let band = |band: &crate::MeterBand| {
            let size = u64::from(if band.burst == 0 { band.rate } else { band.burst }) * PER_UNIT;
            Band { rate: band.rate.into(), size, bucket: size, dropped: BandStats::default() }
        };
        let meter = Meter {
            unit: config.unit,
            bands: config.bands.iter().map(band).collect(),
            packets: 0,
            bytes: 0,
            filled_ms: now_ns / 1_000_000,
        };
        self.meters.write().insert(id, Arc::new(Mutex::new(meter)));
        Ok(())
    }

    pub(super) fn get(&self, id: u32) -> Result<MeterStats> {
        let meter = self.meters.read().get(&id).cloned().ok_or(DpifError::NoSuchMeter(id))?;
        let stats = meter.lock().stats();
        Ok(stats)
    }

    pub(super) fn del(&self, id: u32) -> Result<MeterStats> {
        let meter = self.meters.write().remove(&id).ok_or(DpifError::NoSuchMeter(id))?;
        let stats = meter.lock().stats();
        Ok(stats)
    }

    pub(super) fn clear(&self) {
        self.meters.write().clear();
    }

    /// Whether a packet of `len` bytes is more than a meter lets through. One that isn't there lets everything through.
    pub(super) fn exceeds(&self, id: u32, len: usize, now_ns: u64) -> bool {
        let Some(meter) = self.meters.read().get(&id).cloned() else { return false };
        meter.lock().exceeds(len as u64, now_ns / 1_000_000)
    }

    /// Throws the dice: `true` with a probability of `probability` in 2³², always for the highest.
    pub(super) fn chance(&self, probability: u32) -> bool {
        match probability {
            u32::MAX => true,
            0 => false,
            // splitmix64: a counter, mixed.
            _ => {
                let mut z = self.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((z ^ (z >> 31)) as u32) < probability
            }
        }
    }
}

impl Meter {
    fn exceeds(&mut self, len: u64, now_ms: u64) -> bool {
        let elapsed = now_ms.saturating_sub(self.filled_ms);
        self.filled_ms = self.filled_ms.max(now_ms);
        self.packets += 1;
        self.bytes += len;
        let cost = match self.unit {
            MeterUnit::Kbps => len * 8,
            MeterUnit::Pktps => PER_UNIT,
        };
        let mut exceeded: Option<&mut Band> = None;
        for band in &mut self.bands {
            band.bucket = band.bucket.saturating_add(elapsed.saturating_mul(band.rate)).min(band.size);
            if band.bucket >= cost {
                band.bucket -= cost;
            } else if exceeded.as_ref().is_none_or(|other| band.rate > other.rate) {
                exceeded = Some(band);
            }
        }
        if let Some(band) = &mut exceeded {
            band.dropped.packets += 1;
            band.dropped.bytes += len;
        }
        exceeded.is_some()
    }

    fn stats(&self) -> MeterStats {
        let bands = self.bands.iter().map(|band| band.dropped).collect();
        MeterStats { packets: self.packets, bytes: self.bytes, bands }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MeterBand;

    fn ms(ms: u64) -> u64 {
        ms * 1_000_000
    }

    fn meters(unit: MeterUnit, bands: &[(u32, u32)]) -> Meters {
        let meters = Meters::new(1);
        let bands = bands.iter().map(|(rate, burst)| MeterBand { rate: *rate, burst: *burst }).collect();
        meters.set(3, &MeterConfig { unit, bands }, ms(1000)).unwrap();
        meters
    }

    fn passed(meters: &Meters, n: usize, len: usize, now_ms: u64) -> usize {
        (0..n).filter(|_| !meters.exceeds(3, len, ms(now_ms))).count()
    }

    #[test]
    fn packets_pass_as_often_as_the_rate_says_and_a_burst_at_once() {
        let meters = meters(MeterUnit::Pktps, &[(100, 5)]);
        assert_eq!(passed(&meters, 20, 1500, 1000), 5, "the bucket begins full");
        assert_eq!(passed(&meters, 20, 60, 1009), 0, "a packet takes ten milliseconds");
        assert_eq!(passed(&meters, 20, 60, 1010), 1);
        assert_eq!(passed(&meters, 20, 60, 1040), 3);
        assert_eq!(passed(&meters, 20, 60, 900_000), 5, "no more than the burst, however long the pause");
        assert_eq!(passed(&meters, 20, 60, 5), 0, "a clock that goes back fills nothing");
        let stats = meters.get(3).unwrap();
        assert_eq!((stats.packets, stats.bytes), (120, 20 * 1500 + 100 * 60));
        assert_eq!(stats.bands, [BandStats { packets: 106, bytes: 15 * 1500 + 91 * 60 }]);
    }

    #[test]
    fn bits_pass_as_the_rate_says() {
        // 8 kbit/s are 1000 bytes a second; no burst is given, so it is as much.
        let meters = meters(MeterUnit::Kbps, &[(8, 0)]);
        assert_eq!(passed(&meters, 12, 100, 1000), 10);
        assert_eq!(passed(&meters, 1, 100, 1099), 0);
        assert_eq!(passed(&meters, 2, 100, 1100), 1);
        assert_eq!(passed(&meters, 1, 1001, 9000), 0, "larger than the bucket");
        assert_eq!(passed(&meters, 1, 1000, 9000), 1);
    }

    #[test]
    fn of_several_bands_the_fastest_that_is_exceeded_drops() {
        let meters = meters(MeterUnit::Pktps, &[(10, 2), (100, 4)]);
        assert_eq!(passed(&meters, 6, 60, 1000), 2);
        let dropped =
            |meters: &Meters| meters.get(3).unwrap().bands.iter().map(|band| band.packets).collect::<Vec<_>>();
        // The third and fourth exceed the first band only, which doesn't keep them from the second's bucket.
        assert_eq!(dropped(&meters), [2, 2]);
    }

    #[test]
    fn what_is_no_meter_is_refused_and_what_is_not_there_drops_nothing() {
        let meters = Meters::new(1);
        let config = |bands: Vec<MeterBand>| MeterConfig { unit: MeterUnit::Pktps, bands };
        let band = MeterBand { rate: 1, burst: 0 };
        for (id, config, text) in [
            (1, config(vec![]), "meter 1 has 0 bands: expected 1 to 8"),
            (1, config(vec![band; 9]), "meter 1 has 9 bands: expected 1 to 8"),
            (1, config(vec![MeterBand { rate: 0, burst: 1 }]), "meter 1 has a band of rate 0"),
            (1 << 16, config(vec![band]), "meter 65536 is too high: ids are lower than 65536"),
        ] {
            assert_eq!(meters.set(id, &config, 0).unwrap_err().to_string(), text);
        }
        assert!(!meters.exceeds(1, 100, 0));
        assert!(matches!(meters.get(1), Err(DpifError::NoSuchMeter(1))));
        assert!(matches!(meters.del(1), Err(DpifError::NoSuchMeter(1))));
    }

    #[test]
    fn the_dice_are_fair() {
        let meters = Meters::new(7);
        let hits = (0..20_000).filter(|_| meters.chance(u32::MAX / 4)).count();
        assert!((4_700..5_300).contains(&hits), "{hits}");
        assert!((0..1000).all(|_| meters.chance(u32::MAX) && !meters.chance(0)));
    }
}
