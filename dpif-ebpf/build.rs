//! Embeds the objects of `cargo xtask build-ebpf` where they have been built, so that the daemon is one file.
//!
//! Without them the crate builds all the same (a machine without the eBPF toolchain runs everything but this backend), and
//! opening an eBPF datapath says what is missing.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Names of the objects and of the constants that hold them.
const OBJECTS: [(&str, &str); 2] = [("tc", "TC"), ("port-entry", "PORT_ENTRY")];

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let built = manifest.join("../target/bpf");
    // The folder is there to be watched; an object that is built later changes it.
    let _ = fs::create_dir_all(&built);
    println!("cargo::rerun-if-changed={}", built.display());
    println!("cargo::rerun-if-changed=build.rs");

    let mut code = String::new();
    for (name, constant) in OBJECTS {
        let file = format!("{name}.o");
        let copied = fs::copy(built.join(&file), out.join(&file)).is_ok();
        code += &format!("pub(super) const {constant}: Option<&[u8]> = {};\n", value(copied, &out.join(file)));
    }
    if let Err(error) = fs::write(out.join("objects.rs"), code) {
        println!("cargo::error=can't write to {}: {error}", out.display());
    }
}

fn value(embedded: bool, path: &Path) -> String {
    if embedded { format!("Some(aya::include_bytes_aligned!({:?}))", path.display()) } else { "None".into() }
}
