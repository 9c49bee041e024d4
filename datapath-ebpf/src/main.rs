//! datapath-ebpf
fn main() {}
