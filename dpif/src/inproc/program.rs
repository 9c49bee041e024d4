//! Programs of the in-process datapath: those that every engine runs, and lists with meters and with parts that run on a copy
//! of the packet, which the eBPF programs don't have yet.

use datapath_common::Op;
use datapath_common::op::{MAX_PROGRAM_OPS, OP_LAST, OpKind};

use crate::action::Action;
use crate::program::{self, CompileError};

/// How deep lists may nest in each other.
pub(super) const MAX_NESTING: usize = 10;

/// In `arg` of a `Userspace` operation: the flow's actions go along.
pub(super) const WITH_ACTIONS: u32 = 1 << 8;

/// Compiles `actions`. A list that the eBPF datapath could have is refused where that refuses it: the caller knows what to do.
pub(super) fn compile(actions: &[Action]) -> Result<Vec<Op>, CompileError> {
    if actions.iter().any(is_ours) { checked(in_order(actions, 0)?) } else { program::compile(actions) }
}

/// Compiles `actions` in the order in which they stand.
pub(super) fn compile_in_order(actions: &[Action]) -> Result<Vec<Op>, CompileError> {
    if actions.iter().any(is_ours) { checked(in_order(actions, 0)?) } else { program::compile_in_order(actions) }
}

fn is_ours(action: &Action) -> bool {
    matches!(action, Action::Meter(_) | Action::Clone(_) | Action::Sample { .. })
}

fn checked(ops: Vec<Op>) -> Result<Vec<Op>, CompileError> {
    if ops.len() > MAX_PROGRAM_OPS {
        let n = ops.len();
        return Err(CompileError::Invalid(format!(
            "the action list needs {n} operations, more than the {MAX_PROGRAM_OPS} that a program may have"
        )));
    }
    Ok(ops)
}

/// The list as pieces between the actions that only this engine has.
fn in_order(actions: &[Action], depth: usize) -> Result<Vec<Op>, CompileError> {
    if depth > MAX_NESTING {
        return Err(CompileError::Invalid(format!("action lists nest more than {MAX_NESTING} deep")));
    }
    let mut ops = Vec::new();
    for piece in actions.chunk_by(|a, b| !is_ours(a) && !is_ours(b)) {
        let op = match piece {
            [Action::Meter(id)] => {
                ops.push(Op::new(OpKind::Meter, *id));
                continue;
            }
            [Action::Clone(part)] => (Op::new(OpKind::Clone, 0), part),
            [Action::Sample { probability, actions: part }] => (Op::new(OpKind::Sample, *probability), part),
            plain => {
                if matches!(plain.last(), Some(Action::Trunc(_))) {
                    return Err(CompileError::Unsupported("trunc before a meter, clone or sample".into()));
                }
                // More may follow, so nothing consumes the packet yet.
                ops.extend(
                    program::compile_in_order(plain)?.into_iter().map(|op| Op { flags: op.flags & !OP_LAST, ..op }),
                );
                continue;
            }
        };
        let (op, part) = op;
        let part = in_order(part, depth + 1)?;
        ops.push(Op { a: part.len() as u64, ..op });
        ops.extend(part);
    }
    Ok(ops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OdpPort;

    fn output(port: u32) -> Action {
        Action::Output(OdpPort(port))
    }

    #[test]
    fn parts_stand_behind_what_runs_them() {
        let list = [
            output(1),
            Action::Sample {
                probability: 9,
                actions: vec![Action::Meter(4), output(2), Action::Clone(vec![output(3)])],
            },
            output(5),
        ];
        let ops: Vec<_> = compile(&list).unwrap().iter().map(|op| (op.kind, op.arg, op.a, op.is_last())).collect();
        let [out, sample, meter, clone] =
            [OpKind::Output, OpKind::Sample, OpKind::Meter, OpKind::Clone].map(|kind| kind as u16);
        assert_eq!(
            ops,
            [
                (out, 1, 0, false),
                (sample, 9, 4, false),
                (meter, 4, 0, false),
                (out, 2, 0, false),
                (clone, 0, 1, false),
                (out, 3, 0, false),
                (out, 5, 0, false),
            ]
        );
    }

    #[test]
    fn what_can_not_run_is_refused_by_name() {
        let deep = (0..20).fold(vec![output(1)], |part, _| vec![Action::Clone(part)]);
        let many = vec![Action::Clone(vec![output(1); 3000]), Action::Clone(vec![output(1); 3000])];
        for (list, text) in [
            (deep, "action lists nest more than 10 deep"),
            (many, "the action list needs 6002 operations, more than the 4096 that a program may have"),
            (vec![Action::Trunc(60), Action::Meter(1)], "action trunc before a meter, clone or sample"),
            (vec![Action::Meter(1), Action::PopNsh], "action pop_nsh"),
        ] {
            assert_eq!(compile(&list).unwrap_err().to_string(), text);
        }
    }
}
