// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An assembler for the few classic-BPF instructions that a seccomp filter
//! needs.
//!
//! A filter is a list of blocks, one a system call: "if the number is N, run
//! these instructions", each of which ends in a return. The accumulator holds
//! the number between blocks. (`seccompiler` cannot test the type byte of a
//! request nor return `USER_NOTIF`, hence our own.)

use libc::sock_filter;

/// Offset in `struct seccomp_data` of the system call's number.
const NR: u32 = 0;
/// Offset of the architecture.
const ARCH: u32 = 4;
/// Offset of the first argument.
const ARGS: u32 = 16;

/// Let the call through.
pub(crate) const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
/// Ask the supervisor.
pub(crate) const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;

/// The instructions of one system call's block.
#[derive(Debug, Default)]
pub(crate) struct Block(Vec<sock_filter>);

fn insn(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

impl Block {
    /// Loads the low half of argument `n`.
    pub(crate) fn load_low(mut self, n: u32) -> Block {
        self.0.push(insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, ARGS + 8 * n, 0, 0));
        self
    }

    /// Loads the high half of argument `n`.
    pub(crate) fn load_high(mut self, n: u32) -> Block {
        self.0.push(insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, ARGS + 8 * n + 4, 0, 0));
        self
    }

    /// Keeps the bits of `mask`.
    pub(crate) fn and(mut self, mask: u32) -> Block {
        self.0.push(insn(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask, 0, 0));
        self
    }

    /// Returns `action` if the accumulator is `value`.
    pub(crate) fn if_equal(mut self, value: u32, action: u32) -> Block {
        self.0.push(insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, 1));
        self.ret(action)
    }

    /// Returns `action` unless the accumulator is `value`.
    pub(crate) fn if_not_equal(mut self, value: u32, action: u32) -> Block {
        self.0.push(insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 1, 0));
        self.ret(action)
    }

    /// Returns `action` if the accumulator is at least `value`, unsigned.
    pub(crate) fn if_at_least(mut self, value: u32, action: u32) -> Block {
        self.0.push(insn(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, value, 0, 1));
        self.ret(action)
    }

    /// Returns `action` if the accumulator lies in the range, unsigned.
    pub(crate) fn if_within(mut self, range: std::ops::Range<u32>, action: u32) -> Block {
        self.0.push(insn(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, range.start, 0, 2));
        self.0.push(insn(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, range.end, 1, 0));
        self.ret(action)
    }

    /// Returns `action`.
    pub(crate) fn ret(mut self, action: u32) -> Block {
        self.0.push(insn(libc::BPF_RET | libc::BPF_K, action, 0, 0));
        self
    }
}

/// A filter under construction.
#[derive(Debug)]
pub(crate) struct Assembler {
    code: Vec<sock_filter>,
}

impl Assembler {
    /// A filter that lets everything of another architecture through, and
    /// what `foreign` (a mask of bits in the number) marks as another ABI.
    pub(crate) fn new(arch: u32, foreign: u32) -> Assembler {
        let mut code = vec![
            insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, ARCH, 0, 0),
            insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, arch, 1, 0),
            insn(libc::BPF_RET | libc::BPF_K, ALLOW, 0, 0),
            insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NR, 0, 0),
        ];
        if foreign != 0 {
            code.push(insn(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, foreign, 0, 1));
            code.push(insn(libc::BPF_RET | libc::BPF_K, ALLOW, 0, 0));
        }
        Assembler { code }
    }

    /// Adds the block of system call `nr`. The block ends in a return.
    pub(crate) fn call(&mut self, nr: libc::c_long, block: Block) {
        // Blocks are a handful of instructions; a jump reaches 255.
        let len = u8::try_from(block.0.len()).unwrap_or(u8::MAX);
        debug_assert!(usize::from(len) == block.0.len());
        self.code.push(insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, nr as u32, 0, len));
        self.code.extend(block.0);
    }

    /// The finished filter: all other calls are let through.
    pub(crate) fn finish(mut self) -> Vec<sock_filter> {
        self.code.push(insn(libc::BPF_RET | libc::BPF_K, ALLOW, 0, 0));
        self.code
    }
}

#[cfg(test)]
pub(crate) mod interpreter {
    //! Runs a filter as the kernel would, for the tests.
    use super::*;

    /// What `filter` returns for a call.
    pub(crate) fn run(filter: &[sock_filter], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
        let load = |k: u32| match k {
            NR => nr,
            ARCH => arch,
            _ => {
                let arg = args[((k - ARGS) / 8) as usize];
                if (k - ARGS) % 8 == 4 { (arg >> 32) as u32 } else { arg as u32 }
            }
        };
        let (mut a, mut pc) = (0u32, 0usize);
        loop {
            let i = &filter[pc];
            pc += 1;
            let code = u32::from(i.code);
            match code & 7 {
                libc::BPF_LD => a = load(i.k),
                libc::BPF_ALU => a &= i.k,
                libc::BPF_RET => return i.k,
                libc::BPF_JMP => {
                    let taken = match code & 0xf0 {
                        libc::BPF_JEQ => a == i.k,
                        libc::BPF_JGE => a >= i.k,
                        libc::BPF_JSET => a & i.k != 0,
                        other => panic!("jump {other:#x}"),
                    };
                    pc += usize::from(if taken { i.jt } else { i.jf });
                }
                other => panic!("class {other:#x}"),
            }
        }
    }
}
