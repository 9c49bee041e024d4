//! What the programs say of single packets, if they were loaded to do so, as events of `tracing`.

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;

use crate::background::Background;

/// Passes on what the programs of `object` say, as long as the result lives.
pub(crate) fn follow(object: &mut Ebpf) -> io::Result<Background> {
    let mut logger = EbpfLogger::init_with_logger(object, Tracing).map_err(io::Error::other)?;
    Background::start("dpif-ebpf-debug", move |stop| {
        while stop.wait_for(&logger)? {
            logger.flush();
        }
        Ok(())
    })
}

/// Takes what is said in the vocabulary of `log`.
struct Tracing;

impl log::Log for Tracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "sluice::datapath", "{}", record.args());
    }

    fn flush(&self) {}
}
