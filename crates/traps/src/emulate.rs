// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One instruction, done by hand.

use crate::alu::{STATUS, ZERO};
use crate::c::{self, Context};
use crate::decode::{Action, Address, Instruction, Other, decode};
use crate::ranges::{Place, find};

/// Longest instruction.
const LONGEST: usize = 15;
/// Where a portal says what became of a descriptor, and what means "retry".
const ANSWER: i64 = 8;
const RETRY: u8 = 1;

/// Does the instruction at which the program stands, if it is one that
/// accesses a device; whether it was.
pub(crate) fn step(context: &mut Context) -> bool {
    let at = context.registers[c::RIP];
    let mut code = [0; LONGEST];
    // Up to the end of the page, and further if the instruction goes on there.
    let near = LONGEST.min(4096 - (at as usize & 0xfff));
    // SAFETY: the processor has just read the instruction there.
    unsafe { std::ptr::copy_nonoverlapping(at as *const u8, code.as_mut_ptr(), near) };
    let instruction = decode(&code[..near]).or_else(|| {
        // SAFETY: the instruction is longer, so it was read from there too.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, code.as_mut_ptr(), LONGEST) };
        decode(&code)
    });
    let Some(instruction) = instruction else { return false };
    let mut machine = Machine { context, instruction };
    if machine.run().is_none() {
        return false;
    }
    context.registers[c::RIP] += i64::from(instruction.len);
    true
}

struct Machine<'a> {
    context: &'a mut Context,
    instruction: Instruction,
}

impl Machine<'_> {
    fn run(&mut self) -> Option<()> {
        let Instruction { action, size, .. } = self.instruction;
        let address = self.address();
        match action {
            Action::Move64(to) | Action::Enqueue(to) => {
                let mut bytes = [0_u8; 64];
                // SAFETY: the program would read the same; if it cannot, it
                // gets its signal here instead.
                unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
                self.store64(self.register(to) as usize, &bytes, matches!(action, Action::Enqueue(_)))?;
            }
            _ => {
                let place = find(address)?;
                let bytes = usize::from(size);
                match action {
                    Action::LoadVector(to) => {
                        let mut value = [0; 16];
                        place.load(&mut value[..bytes]);
                        self.set_vector(to, u128::from_le_bytes(value))?;
                    }
                    Action::StoreVector(from) => place.store(&self.vector(from)?.to_le_bytes()[..bytes]),
                    _ => self.scalar(place),
                }
            }
        }
        Some(())
    }

    /// Actions on numbers.
    fn scalar(&mut self, place: Place) {
        let Instruction { action, size, .. } = self.instruction;
        let bytes = usize::from(size);
        let load = || {
            let mut value = [0; 8];
            place.load(&mut value[..bytes]);
            u64::from_le_bytes(value)
        };
        let store = |value: u64| place.store(&value.to_le_bytes()[..bytes]);
        match action {
            Action::Load { to, width, sign } => {
                let value = load();
                let unused = 64 - 8 * u32::from(size);
                let value = if sign { ((value << unused) as i64 >> unused) as u64 } else { value };
                self.set_part(to, value, width);
            }
            Action::Store(other) => store(self.value(other)),
            Action::Change(operation, other) => {
                let (result, flags) = operation.apply(load(), self.value(other), size, self.flags());
                if operation.has_result() {
                    store(result);
                }
                self.set_flags(flags);
            }
            Action::Combine(operation, register) => {
                let (result, flags) = operation.apply(self.part(register), load(), size, self.flags());
                if operation.has_result() {
                    self.set_part(register, result, size);
                }
                self.set_flags(flags);
            }
            Action::Exchange(register) => {
                let (value, old) = (self.part(register), load());
                store(value);
                self.set_part(register, old, size);
            }
            Action::LoadVector(_) | Action::StoreVector(_) | Action::Move64(_) | Action::Enqueue(_) => {}
        }
    }

    fn store64(&mut self, to: usize, bytes: &[u8; 64], enqueue: bool) -> Option<()> {
        let Some(place) = find(to) else {
            // To ordinary memory, on a machine without the instruction.
            if enqueue || !to.is_multiple_of(64) {
                return None;
            }
            // SAFETY: the program would write the same.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
            return Some(());
        };
        place.store(bytes);
        if enqueue {
            let mut answer = [0];
            place.plus(ANSWER).load(&mut answer);
            let flags = self.flags() & !STATUS;
            self.set_flags(if answer == [RETRY] { flags | ZERO } else { flags });
        }
        Some(())
    }

    fn address(&self) -> usize {
        let Address { base, index, displacement, relative } = self.instruction.address;
        let mut address = displacement;
        if relative {
            let next = self.context.registers[c::RIP] + i64::from(self.instruction.len);
            address = address.wrapping_add(next);
        }
        if let Some(base) = base {
            address = address.wrapping_add(self.register(base));
        }
        if let Some((index, shift)) = index {
            address = address.wrapping_add(self.register(index) << shift);
        }
        address as usize
    }

    fn register(&self, number: u8) -> i64 {
        self.context.registers[c::GENERAL[usize::from(number & 15)]]
    }

    fn flags(&self) -> i64 {
        self.context.registers[c::FLAGS]
    }

    fn set_flags(&mut self, flags: i64) {
        self.context.registers[c::FLAGS] = flags;
    }

    /// Whether a register of one byte is the second byte of another.
    fn is_high(&self, number: u8, size: u8) -> bool {
        size == 1 && !self.instruction.rex && number & 4 != 0
    }

    /// As much of a register as the operand has.
    fn part(&self, number: u8) -> u64 {
        if self.is_high(number, self.instruction.size) {
            return (self.register(number & 3) as u64) >> 8;
        }
        self.register(number) as u64
    }

    fn set_part(&mut self, number: u8, value: u64, size: u8) {
        let (number, shift) = if self.is_high(number, size) { (number & 3, 8) } else { (number, 0) };
        let register = &mut self.context.registers[c::GENERAL[usize::from(number & 15)]];
        let old = *register as u64;
        *register = match size {
            1 => (old & !(0xff << shift)) | (value & 0xff) << shift,
            2 => (old & !0xffff) | (value & 0xffff),
            4 => value & 0xffff_ffff,
            _ => value,
        } as i64;
    }

    fn value(&self, other: Other) -> u64 {
        match other {
            Other::Register(number) => self.part(number),
            Other::Immediate(value) => value,
        }
    }

    fn vector(&self, number: u8) -> Option<u128> {
        // SAFETY: the kernel gives the handler the state of the vector unit,
        // or no pointer.
        let state = unsafe { self.context.vectors.as_ref() }?;
        let words = state.xmm.get(usize::from(number))?;
        Some(words.iter().rev().fold(0, |value, word| value << 32 | u128::from(*word)))
    }

    fn set_vector(&mut self, number: u8, value: u128) -> Option<()> {
        // SAFETY: the same.
        let state = unsafe { self.context.vectors.as_mut() }?;
        let words = state.xmm.get_mut(usize::from(number))?;
        words.iter_mut().enumerate().for_each(|(n, word)| *word = (value >> (32 * n)) as u32);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::AsRawFd;

    use super::*;

    /// Where the pretended device is mapped.
    const AT: i64 = 0x1234_5000_0000;
    const PAGE: usize = 4096;

    /// Runs an instruction on a device that is a file. RBX leads to its byte
    /// 0x10; the registers and the file afterwards.
    fn run(code: &[u8], mut set: impl FnMut(&mut Context)) -> Option<(Context, Vec<u8>)> {
        let path = std::env::temp_dir().join(format!("traps-{}-{:?}", std::process::id(), std::thread::current().id()));
        let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(&(0..=255).collect::<Vec<u8>>()).unwrap();
        // SAFETY: numbers and a null pointer.
        let mut context: Context = unsafe { std::mem::zeroed() };
        let mut padded = [0x90; 32];
        padded[..code.len()].copy_from_slice(code);
        // Each test has a place of its own.
        let at = AT + i64::from(file.as_raw_fd()) * PAGE as i64;
        context.registers[c::RIP] = padded.as_ptr() as i64;
        context.registers[c::GENERAL[3]] = at + 0x10;
        set(&mut context);
        let copy = file.try_clone().unwrap();
        assert!(crate::ranges::add(at as usize, PAGE, std::os::fd::IntoRawFd::into_raw_fd(copy), 0));
        let done = step(&mut context);
        crate::ranges::remove(at as usize, PAGE);
        if !done {
            return None;
        }
        assert_eq!(context.registers[c::RIP], padded.as_ptr() as i64 + code.len() as i64);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        Some((context, bytes))
    }

    #[test]
    fn accesses_reach_the_device() {
        // mov eax, [rbx]: the upper half goes.
        let (context, _) = run(&[0x8b, 0x03], |c| c.registers[c::GENERAL[0]] = -1).unwrap();
        assert_eq!(context.registers[c::GENERAL[0]], 0x1312_1110);
        // movsx rcx, byte [rbx+0x70]
        let (context, _) = run(&[0x48, 0x0f, 0xbe, 0x4b, 0x70], |_| ()).unwrap();
        assert_eq!(context.registers[c::GENERAL[1]], i64::from(0x80_u8 as i8));
        // mov [rbx], ah
        let (_, bytes) = run(&[0x88, 0x23], |c| c.registers[c::GENERAL[0]] = 0xabcd).unwrap();
        assert_eq!(bytes[0x0f..0x12], [0x0f, 0xab, 0x11]);
        // or dword [rbx], 0x80
        let (context, bytes) = run(&[0x81, 0x0b, 0x80, 0, 0, 0], |_| ()).unwrap();
        assert_eq!((bytes[0x10], context.registers[c::FLAGS] & ZERO), (0x90, 0));
        // xchg [rbx], edx
        let (context, bytes) = run(&[0x87, 0x13], |c| c.registers[c::GENERAL[2]] = 7).unwrap();
        assert_eq!((context.registers[c::GENERAL[2]], &bytes[0x10..0x14]), (0x1312_1110, &[7, 0, 0, 0][..]));
    }

    #[test]
    fn sixty_four_bytes_go_in_one() {
        let command = [0x5a_u8; 64];
        // movdir64b rbx, [rdx]
        let (_, bytes) =
            run(&[0x66, 0x0f, 0x38, 0xf8, 0x1a], |c| c.registers[c::GENERAL[2]] = command.as_ptr() as i64).unwrap();
        assert!(bytes[0x10..0x50].iter().all(|byte| *byte == 0x5a) && bytes[0x50] == 0x50);
    }

    #[test]
    fn other_memory_is_not_ours() {
        // mov eax, [rcx] with RCX = 8
        assert!(run(&[0x8b, 0x01], |c| c.registers[c::GENERAL[1]] = 8).is_none());
        // nop
        assert!(run(&[0x90], |_| ()).is_none());
    }
}
