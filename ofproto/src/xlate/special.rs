//! Packets that belong to a protocol that userspace speaks ([`crate::protocol`]): the tables don't see them.

use std::sync::Arc;

use super::Taken;
use super::context::Context;
use crate::bridge::Config;
use crate::protocol::Look;

impl<'a> Context<'a> {
    /// Whether a protocol takes the packet, which has just come in by the flow's port.
    pub(super) fn is_special(&mut self) -> bool {
        let config: &'a Config = self.config;
        let port = self.flow.in_port();
        for attached in &config.slow_paths.protocols {
            if attached.bridge != self.bridge.name || attached.port.is_some_and(|only| only != port) {
                continue;
            }
            if attached.protocol.takes(port, &mut Look::new(&self.flow, &mut self.wildcards)) {
                self.slow_path |= attached.protocol.kind().slow_path();
                let (protocol, bridge) = (Arc::clone(&attached.protocol), Arc::clone(&attached.bridge));
                self.taken.push(Taken { protocol, bridge, port });
                return true;
            }
        }
        false
    }
}
