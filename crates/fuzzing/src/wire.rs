// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How operations lie in an input.
//!
//! `arbitrary`'s derive decodes only; seeds have to be encoded too, and a
//! mutation of one byte should change one operand. So each operand has a fixed
//! place: a tag byte that counts modulo the number of variants, then the fields
//! in order, little-endian. What is missing at the end reads as zero.

use arbitrary::{Error, Result, Unstructured};

/// Something that can be read from an input and written into a seed.
pub(crate) trait Wire: Sized {
    fn decode(u: &mut Unstructured<'_>) -> Result<Self>;
    fn encode(&self, out: &mut Vec<u8>);
}

macro_rules! integers {
    ($($ty:ty),*) => {$(
        impl Wire for $ty {
            fn decode(u: &mut Unstructured<'_>) -> Result<$ty> {
                u.arbitrary()
            }

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, i8, i32);

impl Wire for bool {
    fn decode(u: &mut Unstructured<'_>) -> Result<bool> {
        Ok(u.arbitrary::<u8>()? & 1 != 0)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl<T: Wire, const N: usize> Wire for [T; N] {
    fn decode(u: &mut Unstructured<'_>) -> Result<[T; N]> {
        let all: Vec<T> = (0..N).map(|_| T::decode(u)).collect::<Result<_>>()?;
        all.try_into().map_err(|_| Error::IncorrectFormat)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|item| item.encode(out));
    }
}

/// Up to 255 bytes behind their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob(pub(crate) Vec<u8>);

impl Wire for Blob {
    fn decode(u: &mut Unstructured<'_>) -> Result<Blob> {
        let len = usize::from(u.arbitrary::<u8>()?).min(u.len());
        Ok(Blob(u.bytes(len)?.to_vec()))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let len = self.0.len().min(255);
        out.push(len as u8);
        out.extend_from_slice(&self.0[..len]);
    }
}

/// An enum whose values are a tag byte and fields.
macro_rules! wire {
    ($(#[$meta:meta])* enum $name:ident {
        $($(#[$about:meta])* $variant:ident { $($field:ident: $ty:ty),* $(,)? }),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$about])* $variant { $($field: $ty),* }),*
        }

        impl $crate::wire::Wire for $name {
            fn decode(u: &mut arbitrary::Unstructured<'_>) -> arbitrary::Result<$name> {
                type Decode = fn(&mut arbitrary::Unstructured<'_>) -> arbitrary::Result<$name>;
                const VARIANTS: &[Decode] = &[$(|_u| {
                    Ok($name::$variant { $($field: $crate::wire::Wire::decode(_u)?),* })
                }),*];
                let tag = u.arbitrary::<u8>()?;
                VARIANTS[usize::from(tag) % VARIANTS.len()](u)
            }

            fn encode(&self, out: &mut Vec<u8>) {
                const NAMES: &[&str] = &[$(stringify!($variant)),*];
                match self {$(
                    $name::$variant { $($field),* } => {
                        let tag = NAMES.iter().position(|name| *name == stringify!($variant));
                        out.push(tag.unwrap_or_default() as u8);
                        $($crate::wire::Wire::encode($field, out);)*
                    }
                )*}
            }
        }
    };
}
pub(crate) use wire;

/// Operations until the input or the patience of the caller ends.
pub(crate) fn operations<T: Wire>(u: &mut Unstructured<'_>, most: usize) -> Vec<T> {
    let mut all = Vec::new();
    while !u.is_empty() && all.len() < most {
        match T::decode(u) {
            Ok(op) => all.push(op),
            Err(_) => break,
        }
    }
    all
}

/// A seed: settings, then operations.
pub(crate) fn seed<S: Wire, T: Wire>(settings: &S, operations: &[T]) -> Vec<u8> {
    let mut out = Vec::new();
    settings.encode(&mut out);
    operations.iter().for_each(|op| op.encode(&mut out));
    out
}

wire! {
    /// A number that sits where code counts: sizes, addresses, flags.
    enum Number {
        Small { value: u16 },
        Page { page: u16 },
        Edge { edge: u8, delta: i8 },
        EdgePages { edge: u8, pages: i8 },
        Any { value: u64 },
    }
}

const EDGES: [u64; 16] = [
    0,
    sim::BASE,
    sim::BASE + sim::SIZE,
    1 << 12,
    1 << 20,
    1 << 31,
    1 << 32,
    0xfee0_0000,
    0xfef0_0000,
    1 << 39,
    1 << 40,
    1 << 48,
    1 << 57,
    caller::USER_END,
    1 << 63,
    u64::MAX,
];

impl Number {
    pub(crate) fn value(&self) -> u64 {
        let edge = |n: u8| EDGES[usize::from(n) % EDGES.len()];
        match *self {
            Number::Small { value } => value.into(),
            Number::Page { page } => u64::from(page) << 12,
            Number::Edge { edge: n, delta } => edge(n).wrapping_add_signed(delta.into()),
            Number::EdgePages { edge: n, pages } => edge(n).wrapping_add_signed(i64::from(pages) << 12),
            Number::Any { value } => value,
        }
    }

    /// The number as a seed writes it.
    pub(crate) fn of(value: u64) -> Number {
        match u16::try_from(value) {
            Ok(value) => Number::Small { value },
            Err(_) => Number::Any { value },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    wire! {
        enum Thing {
            Empty {},
            Full { byte: u8, number: Number, words: [u32; 3], blob: Blob, on: bool },
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let things = vec![
            Thing::Full {
                byte: 7,
                number: Number::Edge { edge: 3, delta: -1 },
                words: [1, 2, u32::MAX],
                blob: Blob(vec![9; 5]),
                on: true,
            },
            Thing::Empty {},
        ];
        let bytes = seed(&0x55_u8, &things);
        let mut u = Unstructured::new(&bytes);
        assert_eq!(u8::decode(&mut u).ok(), Some(0x55));
        assert_eq!(operations::<Thing>(&mut u, 10), things);
        assert_eq!(Number::Edge { edge: 3, delta: -1 }.value(), 4095);
    }
}
