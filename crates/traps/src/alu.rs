// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Arithmetic and its flags.

/// An operation of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alu {
    Add,
    Or,
    AddCarry,
    SubtractBorrow,
    And,
    Subtract,
    Xor,
    Compare,
    Test,
}

pub(crate) const CARRY: i64 = 1 << 0;
const PARITY: i64 = 1 << 2;
const AUXILIARY: i64 = 1 << 4;
pub(crate) const ZERO: i64 = 1 << 6;
const SIGN: i64 = 1 << 7;
const OVERFLOW: i64 = 1 << 11;
/// All of them.
pub(crate) const STATUS: i64 = CARRY | PARITY | AUXILIARY | ZERO | SIGN | OVERFLOW;

impl Alu {
    /// The operation of this number in an opcode or its extension.
    pub(crate) fn of(number: u8) -> Alu {
        match number & 7 {
            0 => Alu::Add,
            1 => Alu::Or,
            2 => Alu::AddCarry,
            3 => Alu::SubtractBorrow,
            4 => Alu::And,
            5 => Alu::Subtract,
            6 => Alu::Xor,
            _ => Alu::Compare,
        }
    }

    /// Whether there is a result besides the flags.
    pub(crate) fn has_result(self) -> bool {
        !matches!(self, Alu::Compare | Alu::Test)
    }

    /// Result and flags.
    pub(crate) fn apply(self, a: u64, b: u64, size: u8, flags: i64) -> (u64, i64) {
        let bits = 8 * u32::from(size);
        let mask = u64::MAX >> (64 - bits);
        let (a, b) = (a & mask, b & mask);
        let carry = u64::from(flags & CARRY != 0);
        let (wide, arithmetic) = match self {
            Alu::Add => (u128::from(a) + u128::from(b), Some(false)),
            Alu::AddCarry => (u128::from(a) + u128::from(b) + u128::from(carry), Some(false)),
            Alu::Subtract | Alu::Compare => (u128::from(a).wrapping_sub(b.into()), Some(true)),
            Alu::SubtractBorrow => (u128::from(a).wrapping_sub(b.into()).wrapping_sub(carry.into()), Some(true)),
            Alu::Or => ((a | b).into(), None),
            Alu::And | Alu::Test => ((a & b).into(), None),
            Alu::Xor => ((a ^ b).into(), None),
        };
        let result = wide as u64 & mask;
        let top = 1 << (bits - 1);
        let mut new = flags & !STATUS;
        let mut set = |on: bool, flag: i64| new |= if on { flag } else { 0 };
        set(result == 0, ZERO);
        set(result & top != 0, SIGN);
        set((result as u8).count_ones().is_multiple_of(2), PARITY);
        if let Some(subtracts) = arithmetic {
            set(wide >> bits & 1 != 0, CARRY);
            set((a ^ b ^ result) & 0x10 != 0, AUXILIARY);
            let differ = if subtracts { (a ^ b) & (a ^ result) } else { !(a ^ b) & (a ^ result) };
            set(differ & top != 0, OVERFLOW);
        }
        (result, new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flags as the processor gives them.
    #[test]
    fn results_and_flags() {
        for (operation, a, b, size, result, flags) in [
            (Alu::Add, 0xff, 1, 1, 0, CARRY | PARITY | AUXILIARY | ZERO),
            (Alu::Add, 0x7fff_ffff, 1, 4, 0x8000_0000, PARITY | AUXILIARY | SIGN | OVERFLOW),
            (Alu::Subtract, 0, 1, 2, 0xffff, CARRY | PARITY | AUXILIARY | SIGN),
            (Alu::Compare, 5, 5, 8, 0, PARITY | ZERO),
            (Alu::Or, 0, 1 << 63, 8, 1 << 63, PARITY | SIGN),
            (Alu::Xor, 0xf0, 0xf1, 4, 1, 0),
        ] {
            assert_eq!(operation.apply(a, b, size, 0), (result, flags), "{operation:?} {a:#x} {b:#x}");
        }
        assert_eq!(Alu::AddCarry.apply(1, 1, 4, CARRY), (3, PARITY));
        assert_eq!(Alu::SubtractBorrow.apply(1, 1, 4, CARRY).0, 0xffff_ffff);
        assert!((0..7).all(|number| Alu::of(number).has_result()) && !Alu::of(7).has_result());
    }
}
