//! A host with a datapath of its own: a network namespace, and pins that are removed with it.
#![allow(dead_code)]

use std::path::PathBuf;

use dpif_ebpf::{EbpfDpif, Options};
use testkit::Netns;

pub(crate) struct Host {
    pub(crate) netns: Netns,
    pub(crate) name: String,
    pub(crate) options: Options,
}

impl Host {
    pub(crate) fn new(label: &str) -> Self {
        let netns = Netns::new(label).expect("a network namespace");
        netns.silence().expect("a quiet network namespace");
        // `slx-PID-N-LABEL`: unique, but longer than a datapath's name may be.
        let mut words = netns.name().split('-').skip(1);
        let name = format!("t{}-{}", words.next().unwrap_or_default(), words.next().unwrap_or_default());
        // Apart from a real switch's pins on the same machine.
        let options = Options { bpffs: "/run/sluice-test/bpf".into(), slots: 4096, ..Options::default() };
        Self { netns, name, options }
    }

    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).expect("to enter the namespace")
    }

    pub(crate) fn open(&self) -> EbpfDpif {
        EbpfDpif::open(&self.name, &self.options).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.options.bpffs.join("sluice/v1").join(&self.name)
    }

    pub(crate) fn assert_no_pins(&self) {
        assert!(!self.pins().exists(), "{} is left", self.pins().display());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Whatever the test has left.
        for folder in ["links", ""] {
            for entry in std::fs::read_dir(self.pins().join(folder)).into_iter().flatten().flatten() {
                let _ = std::fs::remove_file(entry.path());
            }
            let _ = std::fs::remove_dir(self.pins().join(folder));
        }
    }
}
