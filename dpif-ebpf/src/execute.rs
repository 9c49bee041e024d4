//! Running actions on a packet of userspace: through the receive path of a TAP device.
//!
//! The datapath has a TAP device of its own with several queues. A frame that is written to a queue runs through the TC
//! program on the device's ingress before write(2) returns, on the writer's CPU. The program knows the queue, and the slot
//! with the queue's number holds what it is to do: the action program, and the packet's metadata in place of a key. So an
//! execution is: lock a queue, fill its slot, one writev(2), empty the slot.
//!
//! The frame comes with a `struct virtio_net_hdr`, so super-packets and unfinished checksums go through as they came, and
//! nothing limits a frame to a page or to an MTU. `docs/execute.md` has the figures, and what was tried beside it.

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::num::NonZero;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datapath_common::maps::EXECUTE_SLOTS;
use datapath_common::{FlowKey, Op};
use dpif::program::compile;
use dpif::{Action, DpifError, DpifOp, Execute, Packet, Result};
use netdev::packet_sender::PacketSender;
use parking_lot::{Mutex, MutexGuard};

use crate::compiled::{Compiled, Program};
use crate::flows::compile_error;
use crate::kernel::io_error;
use crate::maps::Maps;
use crate::offload::vnet_header;
use crate::pins::Pins;
use crate::ports::entry::{self, Entry};
use crate::rtnl;
use crate::slots::Slots;
use crate::sys::bpf;
use crate::sys::device::{set_tap_steering, tap_queue};
use crate::transmit::Outbox;

/// What the execute device is called; the kernel numbers it.
const NAME: &str = "sluice-exec%d";
/// Bytes of an Ethernet header: a TAP takes nothing shorter.
pub(crate) const SHORTEST: usize = 14;
/// Bytes of a frame that is copied behind its header.
const COPIED: usize = 2048;

/// A queue of the device.
struct Queue {
    file: File,
    /// Header and frame in one piece, for a frame that is copied in less time than a list of two pieces takes.
    buffer: Vec<u8>,
}

/// The execute device of a datapath. It ends with the process.
pub(crate) struct Executor {
    queues: Box<[Mutex<Queue>]>,
    sender: PacketSender,
    maps: Arc<Maps>,
    slots: Arc<Slots>,
    datapath: String,
    _link: Option<OwnedFd>,
}

impl Executor {
    /// Makes the device in the caller's network namespace.
    pub(crate) fn new(
        pins: &Pins,
        objects: Option<&Path>,
        maps: Arc<Maps>,
        slots: Arc<Slots>,
        datapath: &str,
    ) -> Result<Self> {
        let failed = |error| io_error("can't make the TAP device that executes packets", error);
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let (first, name) = tap_queue(NAME).map_err(failed)?;
        let steered = bpf::zero_filter().and_then(|filter| set_tap_steering(first.as_fd(), filter.as_fd()));
        if let Err(error) = steered {
            tracing::warn!(
                "{datapath}: packets are executed more slowly, because {name} keeps learning flows: {error}"
            );
        }
        let mut queues = vec![Mutex::new(Queue::new(first))];
        for _ in 1..(cpus * 2).clamp(4, EXECUTE_SLOTS) {
            queues.push(Mutex::new(Queue::new(tap_queue(&name).map_err(failed)?.0)));
        }
        for queue in 0..EXECUTE_SLOTS {
            slots.disarm(queue as u32);
        }

        let index = rtnl::by_name(&name).map_err(failed)?.ok_or_else(|| DpifError::NoSuchDevice(name.clone()))?.index;
        rtnl::set_no_ipv6_address(index).map_err(failed)?;
        rtnl::set_no_arp(index).map_err(failed)?;
        let entry = Entry::of_execute(pins, objects)?;
        let link = entry.attach_tcx(&name, index)?;
        if link.is_none() {
            entry::add_clsact(&name, index)?;
            entry.attach_clsact(&name, index)?;
        }
        rtnl::set_up(index).map_err(failed)?;
        let sender =
            PacketSender::open().map_err(|error| io_error("can't open the packet socket that sends packets", error))?;
        Ok(Self { sender, maps, queues: queues.into(), slots, datapath: datapath.into(), _link: link })
    }

    /// Executes the packets among these operations, in their order.
    pub(crate) fn execute_all(&self, ops: &mut [DpifOp<'_>], compiled: &Compiled<'_>) {
        let mut outbox = Outbox::new(&self.maps, &self.sender, ops.len().div_ceil(2));
        for (index, op) in ops.iter_mut().enumerate() {
            let (DpifOp::Execute { execute, result }, Some(program)) = (op, compiled.program(index)) else { continue };
            *result = match program {
                Ok(ops) if outbox.take(*execute, ops) => Ok(()),
                _ => {
                    // None overtakes another.
                    outbox.send();
                    self.execute(*execute, program)
                }
            };
        }
    }

    /// Runs the actions, whose program this is, on the packet; returns when they have run. What they can't do (no such port,
    /// larger than the MTU) is counted as a drop of the datapath.
    pub(crate) fn execute(&self, execute: Execute<'_>, program: &Program) -> Result<()> {
        if execute.packet.data.len() < SHORTEST {
            let len = execute.packet.data.len();
            return Err(DpifError::Invalid(format!("a packet of {len} bytes is shorter than an Ethernet header")));
        }
        let header = vnet_header(execute.packet);
        let ops = match program {
            Ok(ops) => ops,
            // One packet without copies can't run this list; one for each output can, if each action by itself is known.
            Err(error) => {
                let refused = execute.actions.iter().find_map(|action| compile(std::slice::from_ref(action)).err());
                let lists = one_output_each(execute.actions);
                let programs: core::result::Result<Vec<_>, _> = lists.iter().map(|actions| compile(actions)).collect();
                return match (refused, programs) {
                    (None, Ok(programs)) => {
                        programs.iter().try_for_each(|ops| self.run(execute.packet, &header, execute.key, ops))
                    }
                    (refused, _) => Err(compile_error(refused.as_ref().unwrap_or(error), &self.datapath)),
                };
            }
        };
        if ops.is_empty() {
            return Ok(());
        }
        self.run(execute.packet, &header, execute.key, ops)
    }

    fn run(&self, packet: &Packet, header: &[u8], key: &FlowKey, ops: &[Op]) -> Result<()> {
        let rest = self.slots.take_rest(ops)?;
        let (number, mut queue) = self.queue();
        self.slots.write_execute(number, rest.as_ref(), ops, key);
        let written = queue.write(header, &packet.data);
        self.slots.disarm(number);
        drop(queue);
        // The program has ended with the write: nothing to wait for.
        if let Some(rest) = rest {
            self.slots.give_back(rest);
        }
        written.map_err(|error| io_error("can't execute a packet", error))
    }

    /// A queue that nobody uses, or else the one whose turn it is.
    fn queue(&self) -> (u32, MutexGuard<'_, Queue>) {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        // Each thread begins at a queue of its own.
        let own = OWN.try_with(|own| *own).unwrap_or_default() % self.queues.len();
        let (before, from) = self.queues.split_at(own);
        let free = from.iter().chain(before).enumerate().find_map(|(i, queue)| Some((i, queue.try_lock()?)));
        match free {
            Some((i, queue)) => (((own + i) % self.queues.len()) as u32, queue),
            None => (own as u32, self.queues[own].lock()),
        }
    }
}

impl Queue {
    fn new(queue: OwnedFd) -> Self {
        Self { file: File::from(queue), buffer: Vec::new() }
    }

    fn write(&mut self, header: &[u8], data: &[u8]) -> io::Result<()> {
        let is_copied = data.len() <= COPIED;
        if is_copied {
            self.buffer.clear();
            self.buffer.extend_from_slice(header);
            self.buffer.extend_from_slice(data);
        }
        loop {
            let written = match is_copied {
                true => self.file.write(&self.buffer),
                false => self.file.write_vectored(&[IoSlice::new(header), IoSlice::new(data)]),
            };
            match written {
                Ok(n) if n == header.len() + data.len() => return Ok(()),
                Ok(n) => return Err(io::Error::other(format!("the device took {n} bytes of a frame"))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// For each action that sends the packet somewhere: that action, behind the changes before it.
fn one_output_each(actions: &[Action]) -> Vec<Vec<Action>> {
    let (mut lists, mut changes) = (Vec::new(), Vec::new());
    let mut trunc = None;
    for action in actions {
        match action {
            Action::Output(_) | Action::Userspace(_) | Action::Recirc(_) => {
                let mut list: Vec<Action> = changes.clone();
                list.extend(trunc.take());
                list.push(action.clone());
                lists.push(list);
            }
            Action::Trunc(_) => trunc = Some(action.clone()),
            Action::Drop(_) => break,
            change => changes.push(change.clone()),
        }
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpif::OdpPort;

    #[test]
    fn a_list_that_needs_copies_is_run_once_for_each_output() {
        let output = |port| Action::Output(OdpPort(port));
        let list =
            [Action::Trunc(60), output(1), Action::PopVlan, output(2), Action::Recirc(7), Action::PopVlan, output(3)];
        assert!(compile(&list).is_err());
        let lists = one_output_each(&list);
        assert_eq!(
            lists,
            [
                vec![Action::Trunc(60), output(1)],
                vec![Action::PopVlan, output(2)],
                vec![Action::PopVlan, Action::Recirc(7)],
                vec![Action::PopVlan, Action::PopVlan, output(3)],
            ]
        );
        assert!(lists.iter().all(|list| compile(list).is_ok()));
    }
}
