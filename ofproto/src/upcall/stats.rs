//! What each handler counts. Nobody waits for anybody here: a handler adds to its own numbers, whoever asks reads them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::histogram::{Histogram, Latency};

/// Declares the counters of a handler once for the atomic and the plain struct.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        /// What a handler has counted.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct HandlerReport {
            /// Its number.
            pub id: u32,
            $($(#[$doc])* pub $name: u64,)*
            /// From a packet's arrival in the ring to the end of its execution, in nanoseconds.
            pub latency: Latency,
            /// Nanoseconds spent, of a sample of the packets.
            pub split: Split,
        }

        impl HandlerReport {
            /// Adds what another handler, or the same one before it was started anew, has counted. Not its latency and its times.
            pub(crate) fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }

        impl Counters {
            fn report(&self) -> HandlerReport {
                HandlerReport { $($name: self.$name.load(Ordering::Relaxed),)* ..HandlerReport::default() }
            }
        }
    };
}

counters! {
    /// Upcalls received.
    received,
    /// Of those: packets that no flow matched.
    missed,
    /// Packets of flows whose packets all come up.
    slow_path,
    /// sFlow samples.
    sflow,
    /// Samples of rules.
    flow_sample,
    /// IPFIX samples of bridges.
    ipfix,
    /// Packets for the controllers.
    controller,
    /// Batches in which they came.
    batches,
    /// Packets translated.
    translated,
    /// Packets answered with a flow that had been installed meanwhile.
    hit_installed,
    /// Flows installed.
    installed,
    /// Flows that the datapath had already, or another handler was at.
    duplicate,
    /// Flows not installed because there are too many.
    flow_limit,
    /// Flows not installed because their port has too many.
    port_flow_limit,
    /// Flows not installed because their port, or the datapath, has too many masks.
    mask_limit,
    /// Flows that the datapath refused.
    put_failed,
    /// Packets executed, in the datapath or by userspace.
    executed,
    /// Packets that were dropped because translation said so.
    dropped,
    /// Packets that the datapath refused to execute.
    execute_failed,
    /// Samples of all kinds that were told to the exporters, if there are any.
    exported,
    /// Packets for the controllers that were dealt with: handed over, or lost.
    delivered,
    /// Packets handed to whoever has the controllers' connections; of a super-packet each segment.
    packet_in,
    /// Packets for the controllers that could not be handed over: what they are to be told is gone, or they can't be cut.
    packet_in_lost,
    /// Packets that came by a port on no bridge.
    unknown_port,
    /// Packets without readable headers: dropped.
    malformed,
    /// Packets whose key says something else than the packet: dropped.
    contradictory,
    /// Packets whose key says more or less than the packet: their flows send every packet up.
    unfit,
    /// Packets with a cookie of the wrong size or of no known kind: dropped.
    bad_cookie,
    /// Records that are none: cut short, with wrong lengths, or of another layout. Dropped.
    bad_record,
    /// Times that it panicked and was started again.
    restarts,
    /// Packets that were lost with a panic.
    lost_in_panic,
    /// Times that it didn't get back to its ring for a second.
    long_polls,
}

impl HandlerReport {
    /// What became of the packets received: each is in one of these numbers, as soon as its batch has been answered.
    pub fn outcomes(&self) -> [(&'static str, u64); 9] {
        [
            ("executed", self.executed),
            ("dropped", self.dropped),
            ("refused by the datapath", self.execute_failed),
            ("samples", self.exported),
            ("for controllers", self.delivered),
            ("malformed", self.malformed),
            ("contradictory key", self.contradictory),
            ("bad cookie", self.bad_cookie),
            ("lost in a panic", self.lost_in_panic),
        ]
    }
}

/// Where the time goes, from a sample: nanoseconds in all, for so many packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Packets of the sample.
    pub packets: u64,
    /// Receiving: reading the record.
    pub receive: u64,
    /// The look for a flow that was installed meanwhile, and extracting the key again.
    pub decode: u64,
    /// Translating.
    pub translate: u64,
    /// Making the ukey and the flow, and putting the ukey into the table.
    pub ukey: u64,
    /// The datapath's batch: flows and packets.
    pub operate: u64,
    /// What comes after it.
    pub finish: u64,
}

/// Everything that a handler counts.
#[derive(Default)]
pub(crate) struct HandlerStats {
    pub(super) counters: Counters,
    pub(super) latency: Histogram,
    split: [AtomicU64; 7],
}

impl HandlerStats {
    /// Adds the times of a sampled batch.
    pub(super) fn add_split(&self, split: &Split) {
        let parts =
            [split.packets, split.receive, split.decode, split.translate, split.ukey, split.operate, split.finish];
        for (sum, part) in self.split.iter().zip(parts) {
            sum.fetch_add(part, Ordering::Relaxed);
        }
    }

    pub(super) fn report(&self, id: u32) -> HandlerReport {
        let [packets, receive, decode, translate, ukey, operate, finish] =
            self.split.each_ref().map(|sum| sum.load(Ordering::Relaxed));
        let split = Split { packets, receive, decode, translate, ukey, operate, finish };
        HandlerReport { id, latency: self.latency.snapshot(), split, ..self.counters.report() }
    }
}

/// Counts one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
