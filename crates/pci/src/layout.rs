// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each bit of a configuration space is: its value after power on, and
//! whether a write sets it, clears it or does nothing.
//!
//! A layout is built once from a description and shared by all copies of the
//! function.

use crate::{FunctionSpec, PortType, SpecError, express, extended, header, standard};

/// Values and bit kinds of a configuration space, as far as it is used.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Bytes of configuration space.
    pub(crate) size: usize,
    /// Registers after power on.
    pub(crate) power_on: Vec<u8>,
    /// Bits that take what is written.
    pub(crate) writable: Vec<u8>,
    /// Bits that a written 1 clears.
    pub(crate) clear: Vec<u8>,
    /// Bits that a reset leaves alone.
    pub(crate) sticky: Vec<u8>,
    /// Standard capabilities in chain order: id, offset, length.
    pub(crate) capabilities: Vec<(u8, u16, u16)>,
    /// Extended capabilities in chain order: id, offset, length.
    pub(crate) extended: Vec<(u16, u16, u16)>,
    /// Some capability did not fit and was left out.
    pub(crate) overflow: bool,
    next_standard: u16,
    next_extended: u16,
}

/// The kinds of a register's bits.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bits {
    /// Bits that take what is written.
    pub(crate) rw: u32,
    /// Bits that a written 1 clears.
    pub(crate) w1c: u32,
    /// Bits that a reset leaves alone.
    pub(crate) sticky: u32,
}

/// Read-only bits.
pub(crate) const RO: Bits = Bits { rw: 0, w1c: 0, sticky: 0 };

/// Bits that take what is written.
pub(crate) const fn rw(mask: u32) -> Bits {
    Bits { rw: mask, w1c: 0, sticky: 0 }
}

/// Bits that take what is written and survive a reset.
pub(crate) const fn rws(mask: u32) -> Bits {
    Bits { rw: mask, w1c: 0, sticky: mask }
}

/// Bits that a written 1 clears.
pub(crate) const fn w1c(mask: u32) -> Bits {
    Bits { rw: 0, w1c: mask, sticky: 0 }
}

/// Bits that a written 1 clears and a reset does not.
pub(crate) const fn w1cs(mask: u32) -> Bits {
    Bits { rw: 0, w1c: mask, sticky: mask }
}

impl Layout {
    /// The layout of a function. What is wrong with the description shows in
    /// [`FunctionSpec::check`]; here it makes an odd device, never a panic.
    pub(crate) fn new(spec: &FunctionSpec) -> Layout {
        let size = if spec.port_type.is_express() { 4096 } else { 256 };
        let mut layout = Layout {
            size,
            power_on: vec![0; size],
            writable: vec![0; size],
            clear: vec![0; size],
            sticky: vec![0; size],
            capabilities: Vec::new(),
            extended: Vec::new(),
            overflow: false,
            next_standard: 0x40,
            next_extended: 0x100,
        };
        header::build(&mut layout, spec);
        standard::build(&mut layout, spec);
        if spec.port_type.is_express() {
            extended::build(&mut layout, spec);
        }
        layout.trim();
        layout
    }

    /// Drops what is after the last capability: a lab may have thousands of
    /// functions, and most of a configuration space is empty.
    fn trim(&mut self) {
        let used =
            self.power_on.iter().zip(&self.writable).rposition(|(value, writable)| (*value, *writable) != (0, 0));
        let len = used.map_or(0, |last| last + 1).max(usize::from(self.next_extended));
        for bytes in [&mut self.power_on, &mut self.writable, &mut self.clear, &mut self.sticky] {
            // A copy, so that the large piece is free for the next function.
            *bytes = bytes.get(..len).unwrap_or_default().to_vec();
        }
    }

    /// Which bits of a byte take what is written, and which a written 1 clears.
    pub(crate) fn masks(&self, at: usize) -> (u8, u8) {
        let mask = |bytes: &[u8]| bytes.get(at).copied().unwrap_or(0);
        (mask(&self.writable), mask(&self.clear))
    }

    /// [`SpecError::NoRoom`] if a capability was left out.
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        if self.overflow { Err(SpecError::NoRoom) } else { Ok(()) }
    }

    /// Sets a register of `len` bytes: its value after power on and its bits.
    pub(crate) fn set(&mut self, offset: u16, len: u16, value: u32, bits: Bits) {
        for i in 0..len {
            let at = usize::from(offset + i);
            let byte = |v: u32| (v >> (8 * i)) as u8;
            if at < self.power_on.len() {
                self.power_on[at] = byte(value);
                self.writable[at] = byte(bits.rw);
                self.clear[at] = byte(bits.w1c);
                self.sticky[at] = byte(bits.sticky);
            }
        }
    }

    fn link(&mut self, pointer: u16, to: u16) {
        self.set(pointer, 1, u32::from(to), RO);
    }

    /// Adds a capability of `len` bytes to the chain, at `preferred` if that
    /// is still free; its offset, or `None` if it does not fit.
    pub(crate) fn add(&mut self, id: u8, preferred: u16, len: u16) -> Option<u16> {
        let at = self.next_standard.max(preferred);
        if at + len > 0x100 {
            self.overflow = true;
            return None;
        }
        match self.capabilities.last() {
            Some(&(_, last, _)) => self.link(last + 1, at),
            None => {
                self.link(0x34, at);
                self.power_on[0x06] |= 0x10;
            }
        }
        self.set(at, 1, u32::from(id), RO);
        self.capabilities.push((id, at, len));
        self.next_standard = (at + len).next_multiple_of(4);
        Some(at)
    }

    /// Adds an extended capability of `len` bytes to the chain; its offset, or
    /// `None` if it does not fit.
    pub(crate) fn add_extended(&mut self, id: u16, version: u8, len: u16) -> Option<u16> {
        let at = self.next_extended;
        if usize::from(at + len) > self.power_on.len() {
            self.overflow = true;
            return None;
        }
        if let Some(&(_, last, _)) = self.extended.last() {
            // Bits 31:20 of the header: the next one's offset.
            let header = u32::from(at) << 4 | u32::from(self.power_on[usize::from(last) + 2]) & 0xf;
            self.set(last + 2, 2, header, RO);
        }
        self.set(at, 4, u32::from(version & 0xf) << 16 | u32::from(id), RO);
        self.extended.push((id, at, len));
        self.next_extended = (at + len).next_multiple_of(8);
        Some(at)
    }

    /// Offset of a capability.
    pub(crate) fn capability(&self, id: u8) -> Option<u16> {
        self.capabilities.iter().find(|c| c.0 == id).map(|c| c.1)
    }

    /// Offset of an extended capability.
    pub(crate) fn extended_capability(&self, id: u16) -> Option<u16> {
        self.extended.iter().find(|c| c.0 == id).map(|c| c.1)
    }
}

/// Adds the PCI Express capability where the function has one.
pub(crate) fn add_express(layout: &mut Layout, spec: &FunctionSpec) {
    if spec.port_type.is_express() {
        express::build(layout, spec, spec.port_type == PortType::VirtualFunction);
    }
}
