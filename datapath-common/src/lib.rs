#![no_std]
//! Types and logic that the eBPF programs and userspace share.
