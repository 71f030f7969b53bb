// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs that mean harm: any request, any argument, any structure. Nothing
//! panics, and afterwards the books add up.

use ::device::Driver;
use proptest::prelude::*;
use uapi::vfio::container::SET_IOMMU;
use uapi::vfio::group::SET_CONTAINER;
use uapi::vfio::type1::UNMAP_DMA;
use zerocopy::IntoBytes;

use super::{ALL, PAGE, RAM, Type1Lab};
use crate::Options;

/// Numbers that sit on edges.
fn number() -> impl Strategy<Value = u64> {
    let edges = vec![0, 1, PAGE, RAM, 1 << 31, 0xfee0_0000, 1 << 48, 1 << 63, u64::MAX - 4095, u64::MAX];
    let near = (prop::sample::select(edges), -2..3i64).prop_map(|(edge, pages)| edge.wrapping_add_signed(pages * 4096));
    prop_oneof![4 => near, 2 => (0..16u64).prop_map(|page| page * PAGE), 1 => any::<u64>()]
}

/// A structure: argsz and flags, then words.
fn structure() -> impl Strategy<Value = Vec<u8>> {
    let argsz = prop_oneof![4 => Just(48u32), 1 => 0..64u32, 1 => any::<u32>()];
    let flags = prop_oneof![4 => 0..8u32, 1 => any::<u32>()];
    (argsz, flags, prop::collection::vec(number(), 8))
        .prop_map(|(argsz, flags, words)| [argsz.as_bytes(), flags.as_bytes(), words.as_bytes()].concat())
}

#[derive(Clone, Debug)]
enum Argument {
    Structure(Vec<u8>),
    Number(u64),
}

fn argument() -> impl Strategy<Value = Argument> {
    prop_oneof![5 => structure().prop_map(Argument::Structure), 1 => number().prop_map(Argument::Number)]
}

proptest! {
    #[test]
    fn nothing_panics(
        v2 in any::<bool>(),
        width in prop::sample::select(vec![30u8, 39, 48, 57, 64]),
        calls in prop::collection::vec((0..3usize, 0x3b60..0x3b7cu32, argument()), 1..40),
    ) {
        let options = Options { address_width: width, dma_entry_limit: 8, ..Options::default() };
        let mut t = Type1Lab::with(if v2 { 3 } else { 1 }, options);
        t.lab.add(8, "0000:02:00.0", Some(Driver::VfioPci));
        let other = t.lab.open_group(8).unwrap();
        // Whatever descriptor is guessed at, there may be a file.
        let fd = t.lab.client.fd(t.container);
        for (file, request, argument) in calls {
            let file = [t.container, t.group, other][file];
            let arg = match argument {
                Argument::Structure(bytes) => t.lab.client.put_bytes(&bytes),
                Argument::Number(number) => number,
            };
            let _ = t.lab.ioctl(file, request, arg);
            let fd = t.lab.client.put(&fd);
            let _ = t.lab.ioctl(file, SET_CONTAINER, fd);
            let _ = t.lab.ioctl(t.container, SET_IOMMU, 3);
        }
        let mut mapped = 0;
        let arg = t.lab.client.put_bytes(&[24u32.as_bytes(), ALL.as_bytes(), &[0; 16]].concat());
        if t.ioctl(UNMAP_DMA, arg).is_ok() {
            mapped = t.lab.client.get::<u64>(arg + 16);
        }
        prop_assert_eq!(mapped % PAGE, 0);
        prop_assert_eq!(t.lab.vfio.locked.pages(t.lab.client.process), 0);
    }
}
