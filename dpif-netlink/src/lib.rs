//! The kernel's own `openvswitch` module as a datapath.
//!
//! Userspace speaks generic netlink with it: datapaths, vports, flows and packets each have a family ([`uapi`]). [`attr`] reads
//! and writes attributes, [`codec`] turns them into keys, masks and actions.
#![deny(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod attr;
pub mod codec;
pub mod uapi;
