//! Frames that are made in the kernel arrive as their flows' frames, and are counted.

use std::io;
use std::time::Duration;

use testkit::bpf::{Hook, Program};
use testkit::live::frames::{Flow, LARGE, SMALL};
use testkit::live::{Generator, Wires};
use testkit::wait_until;

const FRAMES: u32 = 1_000;

#[test]
fn generated_frames_are_those_of_their_flows_in_turn() -> io::Result<()> {
    testkit::require_root_and_bpf!("generated frames are those of their flows", Ok(()));
    for len in [SMALL, LARGE] {
        let wires = Wires::new("live")?;
        let _switch = redirecting(&wires)?;
        let receiver = wires.right.socket()?;
        let flows = [1, 2, 70_000].map(|number| Flow::number(number, len));
        let generator = Generator::new(&flows, wires.left.device)?;
        wires.left.netns.run(|| generator.send(6))??;
        for flow in flows.iter().cycle().take(6) {
            let frame = receiver.recv(Duration::from_secs(5))?.expect("as many frames as were sent");
            assert_eq!(frame.bytes, flow.frame());
        }
    }
    Ok(())
}

#[test]
fn each_hook_counts_what_arrives() -> io::Result<()> {
    testkit::require_root_and_bpf!("each hook counts what arrives", Ok(()));
    for hook in [Hook::Tc, Hook::Xdp] {
        let wires = Wires::new("count")?;
        let _switch = redirecting(&wires)?;
        let counter = wires.right.count(hook)?;
        let generator = Generator::new(&[Flow::number(1, SMALL)], wires.left.device)?;
        wires.left.netns.run(|| generator.send(FRAMES))??;
        let all = || counter.frames().is_ok_and(|frames| frames == u64::from(FRAMES));
        assert!(wait_until(Duration::from_secs(5), all), "{hook:?}: {}", counter.frames()?);
        assert!(counter.rate()? > 0.0, "{hook:?}");
        counter.reset()?;
        assert_eq!(counter.frames()?, 0);
    }
    Ok(())
}

#[test]
fn a_program_that_the_verifier_refuses_says_why() {
    testkit::require_root_and_bpf!("a program that the verifier refuses says why");
    let Err(error) = Program::load(Hook::Tc, &testkit::bpf::Code::default()) else {
        panic!("the kernel takes a program without an instruction")
    };
    assert!(error.to_string().contains("refuses a program"), "{error}");
}

/// Sends everything on from `p1` to `p2`.
fn redirecting(wires: &Wires) -> io::Result<testkit::bpf::Attached> {
    wires.switch.run(|| Program::redirect(Hook::Tc, wires.port("p2")?)?.attach(wires.port("p1")?))?
}
