//! What the programs say of single packets.

mod common;

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use common::*;
use dpif::{Dpif, OdpPort};
use testkit::wait_until;

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Text {
    fn contains(&self, what: &str) -> bool {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).contains(what)
    }
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn programs_that_are_loaded_to_do_so_say_what_happens_to_a_packet() {
    testkit::require_root_and_bpf!("programs_that_are_loaded_to_do_so_say_what_happens_to_a_packet");
    let text = Text::default();
    let writer = text.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let mut host = Host::new("debug");
    host.options.debug = true;
    let (dpif, left, right) = two_ports(&host);
    dpif.flow_put(&flow_of_port(OdpPort(1), vec![output(OdpPort(2))])).unwrap();
    left.socket.send(&udp(99, 1)).unwrap();
    assert!(wait_until(SOON, || text.contains("sluice::datapath: port 1, 99 bytes: flow in slot 64")));
    right.socket.send(&udp(98, 1)).unwrap();
    assert!(wait_until(SOON, || text.contains("port 2, 98 bytes: miss")));
    dpif.destroy().unwrap();
}
