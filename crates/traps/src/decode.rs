// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Instructions with a memory operand.

use crate::alu::Alu;

/// An operand in memory, as the instruction has it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Address {
    pub(crate) base: Option<u8>,
    pub(crate) index: Option<(u8, u8)>,
    pub(crate) displacement: i64,
    /// Counted from the end of the instruction.
    pub(crate) relative: bool,
}

/// What is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Other {
    Register(u8),
    Immediate(u64),
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// To a register; of how many bytes it is the sign, or 0.
    Load {
        to: u8,
        width: u8,
        sign: bool,
    },
    Store(Other),
    /// To memory, unless it only sets flags.
    Change(Alu, Other),
    /// To a register.
    Combine(Alu, u8),
    Exchange(u8),
    LoadVector(u8),
    StoreVector(u8),
    /// 64 bytes from memory to where a register points.
    Move64(u8),
    /// The same, and it is told whether they were taken.
    Enqueue(u8),
}

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instruction {
    pub(crate) action: Action,
    /// Bytes of the operand in memory.
    pub(crate) size: u8,
    pub(crate) address: Address,
    pub(crate) len: u8,
    /// Registers 4 to 7 of one byte are the low ones.
    pub(crate) rex: bool,
}

/// Bytes of an instruction, one after the other.
struct Code<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Code<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied();
        self.at += 1;
        byte
    }

    /// A number with a sign.
    fn number(&mut self, len: usize) -> Option<i64> {
        let mut value = 0_i64;
        for n in 0..len {
            value |= i64::from(self.byte()?) << (8 * n);
        }
        let unused = 64 - 8 * len as u32;
        Some(value << unused >> unused)
    }
}

#[derive(Clone, Copy, Default)]
struct Prefixes {
    operand: bool,
    repeat: u8,
    rex: u8,
}

impl Prefixes {
    fn size(self) -> u8 {
        match (self.rex & 8 != 0, self.operand) {
            (true, _) => 8,
            (false, true) => 2,
            (false, false) => 4,
        }
    }
}

/// Decodes an instruction that has a memory operand; `None` if it is not known.
pub(crate) fn decode(bytes: &[u8]) -> Option<Instruction> {
    let mut code = Code { bytes, at: 0 };
    let mut prefixes = Prefixes::default();
    let mut byte = code.byte()?;
    loop {
        match byte {
            0x66 => prefixes.operand = true,
            0xf2 | 0xf3 => prefixes.repeat = byte,
            // Segments without a base, hints, a lock.
            0x26 | 0x2e | 0x36 | 0x3e | 0xf0 => {}
            _ => break,
        }
        byte = code.byte()?;
    }
    if byte & 0xf0 == 0x40 {
        prefixes.rex = byte;
        byte = code.byte()?;
    }
    match byte {
        0x0f => match code.byte()? {
            0x38 => wide(&mut code, prefixes),
            byte => two_bytes(&mut code, prefixes, byte),
        },
        _ => one_byte(&mut code, prefixes, byte),
    }
}

/// Register of the reg field and the memory operand. `None` for two registers.
fn operands(code: &mut Code<'_>, prefixes: Prefixes) -> Option<(u8, Address)> {
    let modrm = code.byte()?;
    let (mode, register, rm) = (modrm >> 6, (modrm >> 3 & 7) | (prefixes.rex & 4) << 1, modrm & 7);
    if mode == 3 {
        return None;
    }
    let mut address = Address::default();
    let mut far = false;
    if rm == 4 {
        let sib = code.byte()?;
        let index = (sib >> 3 & 7) | (prefixes.rex & 2) << 2;
        address.index = (index != 4).then_some((index, sib >> 6));
        if sib & 7 == 5 && mode == 0 {
            far = true;
        } else {
            address.base = Some((sib & 7) | (prefixes.rex & 1) << 3);
        }
    } else if rm == 5 && mode == 0 {
        far = true;
        address.relative = true;
    } else {
        address.base = Some(rm | (prefixes.rex & 1) << 3);
    }
    address.displacement = match mode {
        0 if !far => 0,
        1 => code.number(1)?,
        _ => code.number(4)?,
    };
    Some((register, address))
}

fn one_byte(code: &mut Code<'_>, prefixes: Prefixes, opcode: u8) -> Option<Instruction> {
    let size = if opcode & 1 == 0 { 1 } else { prefixes.size() };
    let (register, address) = operands(code, prefixes)?;
    // An immediate of the operand's size, at most 4 bytes long.
    let immediate = |code: &mut Code<'_>, len: u8| code.number(len.min(4).into()).map(|n| Other::Immediate(n as u64));
    let action = match opcode {
        0x88 | 0x89 => Action::Store(Other::Register(register)),
        0x8a | 0x8b => Action::Load { to: register, width: size, sign: false },
        0xc6 | 0xc7 if register & 7 == 0 => Action::Store(immediate(code, size)?),
        0x86 | 0x87 => Action::Exchange(register),
        0x84 | 0x85 => Action::Change(Alu::Test, Other::Register(register)),
        0xf6 | 0xf7 if register & 7 == 0 => Action::Change(Alu::Test, immediate(code, size)?),
        0x63 => {
            let action = Action::Load { to: register, width: prefixes.size(), sign: true };
            return Some(finish(code, prefixes, action, 4, address));
        }
        0x80 | 0x81 => Action::Change(Alu::of(register), immediate(code, size)?),
        0x83 => Action::Change(Alu::of(register), immediate(code, 1)?),
        _ if opcode < 0x40 && opcode & 7 < 2 => Action::Change(Alu::of(opcode >> 3), Other::Register(register)),
        _ if opcode < 0x40 && opcode & 7 < 4 => Action::Combine(Alu::of(opcode >> 3), register),
        _ => return None,
    };
    Some(finish(code, prefixes, action, size, address))
}

fn two_bytes(code: &mut Code<'_>, prefixes: Prefixes, opcode: u8) -> Option<Instruction> {
    let (register, address) = operands(code, prefixes)?;
    let width = prefixes.size();
    let vector_load = Action::LoadVector(register);
    let vector_store = Action::StoreVector(register);
    let (action, size) = match (opcode, prefixes.operand, prefixes.repeat) {
        (0xb6 | 0xb7, ..) => (Action::Load { to: register, width, sign: false }, 1 + (opcode & 1)),
        (0xbe | 0xbf, ..) => (Action::Load { to: register, width, sign: true }, 1 + (opcode & 1)),
        (0x10 | 0x28, _, 0) | (0x6f, true, _) | (0x6f, _, 0xf3) => (vector_load, 16),
        (0x11 | 0x29 | 0xe7 | 0x2b, _, 0) | (0x7f, true, _) | (0x7f, _, 0xf3) => (vector_store, 16),
        (0x7e, false, 0xf3) => (vector_load, 8),
        (0xd6, true, _) => (vector_store, 8),
        (0x6e, true, _) => (vector_load, if width == 8 { 8 } else { 4 }),
        (0x7e, true, _) => (vector_store, if width == 8 { 8 } else { 4 }),
        (0xc3, ..) => (Action::Store(Other::Register(register)), width),
        _ => return None,
    };
    Some(finish(code, prefixes, action, size, address))
}

/// What follows 0f 38.
fn wide(code: &mut Code<'_>, prefixes: Prefixes) -> Option<Instruction> {
    let opcode = code.byte()?;
    let (register, address) = operands(code, prefixes)?;
    let (action, size) = match (opcode, prefixes.repeat, prefixes.operand) {
        (0xf8, 0xf2 | 0xf3, _) => (Action::Enqueue(register), 64),
        (0xf8, 0, true) => (Action::Move64(register), 64),
        (0xf9, 0, _) => (Action::Store(Other::Register(register)), prefixes.size()),
        _ => return None,
    };
    Some(finish(code, prefixes, action, size, address))
}

fn finish(code: &Code<'_>, prefixes: Prefixes, action: Action, size: u8, address: Address) -> Instruction {
    Instruction { action, size, address, len: code.at as u8, rex: prefixes.rex != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(bytes: &[u8]) -> Instruction {
        let found = decode(bytes).unwrap_or_else(|| panic!("{bytes:02x?}"));
        assert_eq!(usize::from(found.len), bytes.len(), "{bytes:02x?}");
        found
    }

    /// Encodings as the assembler gives them.
    #[test]
    fn loads_and_stores_are_read_off() {
        let load = |to, width, sign| Action::Load { to, width, sign };
        for (bytes, action, size, displacement) in [
            (&[0x8b, 0x47, 0x54][..], load(0, 4, false), 4, 0x54), // mov eax, [rdi+0x54]
            (&[0x4c, 0x8b, 0x3e], load(15, 8, false), 8, 0),       // mov r15, [rsi]
            (&[0x0f, 0xb7, 0x02], load(0, 4, false), 2, 0),        // movzx eax, word [rdx]
            (&[0x48, 0x0f, 0xbe, 0x02], load(0, 8, true), 1, 0),   // movsx rax, byte [rdx]
            (&[0x48, 0x63, 0x01], load(0, 8, true), 4, 0),         // movsxd rax, dword [rcx]
            (&[0x89, 0x8a, 0xa0, 0, 0, 0], Action::Store(Other::Register(1)), 4, 0xa0), // mov [rdx+0xa0], ecx
            (&[0xc7, 0x00, 0x05, 0, 0, 0], Action::Store(Other::Immediate(5)), 4, 0), // mov dword [rax], 5
            (&[0x66, 0xc7, 0x00, 0xff, 0xff], Action::Store(Other::Immediate(u64::MAX)), 2, 0), // mov word [rax], -1
            (&[0x83, 0x48, 0x08, 0x01], Action::Change(Alu::Or, Other::Immediate(1)), 4, 8), // or dword [rax+8], 1
            (&[0x85, 0x01], Action::Change(Alu::Test, Other::Register(0)), 4, 0), // test [rcx], eax
            (&[0x03, 0x01], Action::Combine(Alu::Add, 0), 4, 0),   // add eax, [rcx]
            (&[0x87, 0x01], Action::Exchange(0), 4, 0),            // xchg [rcx], eax
            (&[0xf3, 0x0f, 0x6f, 0x06], Action::LoadVector(0), 16, 0), // movdqu xmm0, [rsi]
            (&[0x66, 0x0f, 0xd6, 0x0f], Action::StoreVector(1), 8, 0), // movq [rdi], xmm1
            (&[0x66, 0x0f, 0x38, 0xf8, 0x02], Action::Move64(0), 64, 0), // movdir64b rax, [rdx]
            (&[0xf2, 0x0f, 0x38, 0xf8, 0x02], Action::Enqueue(0), 64, 0), // enqcmd rax, [rdx]
        ] {
            let found = known(bytes);
            assert_eq!((found.action, found.size), (action, size), "{bytes:02x?}");
            assert_eq!(found.address.displacement, displacement, "{bytes:02x?}");
        }
    }

    #[test]
    fn addresses_are_read_off() {
        // mov eax, [r9+r12*4-8]
        let address = known(&[0x43, 0x8b, 0x44, 0xa1, 0xf8]).address;
        assert_eq!((address.base, address.index, address.displacement), (Some(9), Some((12, 2)), -8));
        // mov eax, [rip+0x10]
        let address = known(&[0x8b, 0x05, 0x10, 0, 0, 0]).address;
        assert!(address.relative && address.base.is_none() && address.displacement == 0x10);
        // mov eax, [0x1000]
        let address = known(&[0x8b, 0x04, 0x25, 0, 0x10, 0, 0]).address;
        assert_eq!((address.base, address.index, address.displacement), (None, None, 0x1000));
    }

    #[test]
    fn what_is_no_access_or_not_whole_is_refused() {
        for bytes in [&[0x8b, 0xc1][..], &[0x90], &[0x8b], &[0x8b, 0x84, 0x24, 1], &[0x66], &[0xff, 0x00], &[]] {
            assert!(decode(bytes).is_none(), "{bytes:02x?}");
        }
    }
}
