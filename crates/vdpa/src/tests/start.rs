// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What vdpa_sim is like: section 9.

use uapi::vhost::request;

use crate::testing::{Bench, SHARED};
use crate::{Mapping, Parent};

/// VDPA-9.1
#[test]
fn the_simulators_parameters() {
    let (sim, dma) = (Parent::Sim.spec(), Parent::SimDma.spec());
    assert_eq!((sim.mapping, dma.mapping), (Mapping::SetMap, Mapping::DmaMap));
    assert_eq!((sim.max_entries, sim.table_entries, sim.use_va), (2048, 2048, true));
}

/// VDPA-9.2: 1:1 until the first message of the address space reaches it.
#[test]
fn everything_is_mapped_at_first() {
    for parent in [Parent::Sim, Parent::SimDma] {
        let mut bench = Bench::owned(parent.spec());
        bench.client.memory.store(SHARED + 0xfff, &[1, 2]);
        assert_eq!((bench.reach(0), bench.reach(1)), (None, None));
        let mut bytes = [0; 2];
        assert!(bench.endpoint.requester(0).unwrap().session().read(SHARED + 0xfff, &mut bytes).is_ok());
        assert_eq!(bytes, [1, 2], "IOVA = VA");
        assert!(bench.endpoint.requester(0).unwrap().session().write(SHARED, &[9]).is_ok());
        assert_eq!(bench.dma(0, SHARED), Some(9));
        assert_eq!(bench.dma(0, 0x10), None, "nothing of the program is there");
        bench.update(0, 0, 4096, SHARED).unwrap();
        assert_eq!((bench.reach(0), bench.reach(1)), (Some(vec![(0, 0xfff)]), None));
        assert_eq!(bench.get::<u16>(request::VDPA_GET_VRING_NUM), Ok(256));
    }
}

/// VDPA-9.5: a reset keeps the size, and clears all else of a ring.
#[test]
fn a_reset_clears_rings_but_for_their_size() {
    let mut bench = Bench::owned(Parent::SimDma.spec());
    bench.negotiate();
    bench.set_ring(0, 0x1000);
    bench.ring(request::SET_VRING_BASE, 0, 7).unwrap();
    bench.ring(request::VDPA_SET_VRING_ENABLE, 0, 1).unwrap();
    bench.set_status(0).unwrap();
    assert_eq!(bench.ask(request::GET_VRING_BASE, 0), Ok(0));
    assert_eq!((bench.endpoint.is_ready(0), bench.endpoint.features()), (false, 0));
    bench.set_status(4).unwrap();
    assert_eq!(bench.ask(request::VDPA_GET_VRING_SIZE, 0), Ok(16));
}

/// VDPA-9.6
#[test]
fn any_status_is_stored() {
    let mut bench = Bench::new(Parent::Sim.spec());
    for status in [0x20, 0x28, 0xb8] {
        bench.set_status(status).unwrap();
        assert_eq!(bench.status(), status);
    }
}
