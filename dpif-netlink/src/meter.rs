//! Meters (`OVS_METER_*`), which the kernel keeps per datapath.

use dpif::{BandStats, DpifError, MeterConfig, MeterFeatures, MeterStats, MeterUnit, Result};
use nix::errno::Errno;

use crate::attr::{Attrs, Writer, u32_of};
use crate::codec;
use crate::error::{self, ENGINE};
use crate::kernel::{Kernel, Request, words};
use crate::uapi::meter;

impl Kernel {
    /// What meters can do here; nothing where the module is too old for them (before 4.18).
    pub(crate) fn meter_features(&self, datapath: i32) -> MeterFeatures {
        let mut features = MeterFeatures::default();
        let asked = self.meter_request(datapath, meter::FEATURES, &|_| Ok(()), |attrs| {
            let number = |kind| Attrs::new(attrs).find(kind).and_then(u32_of).unwrap_or(0);
            features = MeterFeatures { max_meters: number(meter::MAX_METERS), max_bands: number(meter::MAX_BANDS) };
        });
        asked.map_or_else(|_| MeterFeatures::default(), |()| features)
    }

    /// Makes a meter, or changes one.
    pub(crate) fn meter_set(&self, datapath: i32, id: u32, config: &MeterConfig) -> Result<()> {
        let attrs = |to: &mut Writer| {
            to.put_u32(meter::ID, id);
            if config.unit == MeterUnit::Kbps {
                to.put_flag(meter::KBPS);
            }
            let bands = to.begin_nest(meter::BANDS);
            for band in &config.bands {
                let nest = to.begin_nest(meter::BANDS);
                to.put_u32(meter::BAND_TYPE, meter::BAND_DROP);
                to.put_u32(meter::BAND_RATE, band.rate);
                // The kernel lets a burst of none through with nothing to spare.
                to.put_u32(meter::BAND_BURST, if band.burst == 0 { band.rate } else { band.burst });
                to.end(nest);
            }
            to.end(bands);
            Ok(())
        };
        self.meter_request(datapath, meter::SET, &attrs, |_| {})
    }

    /// What a meter has counted; `delete` ends it too.
    pub(crate) fn meter_stats(&self, datapath: i32, id: u32, delete: bool) -> Result<MeterStats> {
        let attrs = |to: &mut Writer| {
            to.put_u32(meter::ID, id);
            Ok(())
        };
        let mut stats = None;
        let command = if delete { meter::DEL } else { meter::GET };
        self.meter_request(datapath, command, &attrs, |attrs| stats = Some(read(attrs)))?;
        stats.flatten().ok_or_else(|| DpifError::Invalid(format!("there is no meter {id}")))
    }

    fn meter_request(
        &self,
        datapath: i32,
        cmd: u8,
        attrs: &dyn Fn(&mut Writer) -> codec::Result<()>,
        mut reply: impl FnMut(&[u8]),
    ) -> Result<()> {
        let family = self.families.meter.ok_or_else(|| DpifError::Unsupported("a meter".into(), ENGINE.into()))?;
        let request = Request { family, cmd, flags: 0, attrs };
        match self.request(datapath, &request, |_, attrs| reply(attrs))? {
            Ok(()) => Ok(()),
            Err(Errno::ENOENT) => Err(DpifError::Invalid("there is no such meter".into())),
            Err(Errno::EINVAL) => Err(DpifError::Invalid("the kernel refuses the meter".into())),
            Err(Errno::EFBIG | Errno::ENOSPC) => Err(DpifError::Full("the datapath has no room for the meter".into())),
            Err(errno) => Err(error::of(errno, || "can't ask about a meter".into())),
        }
    }
}

/// `None` where there was no meter: the kernel then answers without counters.
pub(crate) fn read(attrs: &[u8]) -> Option<MeterStats> {
    let attrs = Attrs::new(attrs);
    let [packets, bytes] = words(attrs.clone().find(meter::STATS)?);
    let bands = Attrs::new(attrs.find(meter::BANDS).unwrap_or_default());
    let bands = bands.map_while(std::result::Result::ok).map(|(_, band)| {
        let [packets, bytes] = words(Attrs::new(band).find(meter::BAND_STATS).unwrap_or_default());
        BandStats { packets, bytes }
    });
    Some(MeterStats { packets, bytes, bands: bands.collect() })
}
