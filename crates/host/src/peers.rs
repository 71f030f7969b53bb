// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Peer-to-peer behind the IOMMU's back: which devices each device's requests
//! reach by bus address.

use device::Board;
use iommu::Direct;
use pci::Address;
use pci::resource::IORESOURCE_MEM;

/// Tells each device which of its group it reaches so. Functions of different
/// groups never do (GRP-003, GRP-005).
pub(crate) fn connect(board: &Board) {
    for (_, members) in board.fabric.groups().filter(|(_, members)| members.len() > 1) {
        members.iter().for_each(|member| connect_one(board, *member));
    }
}

fn connect_one(board: &Board, address: Address) {
    let Some(endpoint) = board.endpoint(address) else { return };
    let mut windows = Vec::new();
    for peer in board.fabric.direct_peers(address) {
        let Some(other) = board.endpoint(peer) else { continue };
        for (bar, resource) in board.fabric.resources(peer).iter().take(6).enumerate() {
            let claimed = resource.start != 0 && resource.flags & IORESOURCE_MEM != 0;
            if let Some(memory) = other.peer(bar).filter(|_| claimed) {
                windows.push(Direct { first: resource.start, last: resource.end, memory });
            }
        }
    }
    endpoint.requester.set_direct(windows);
}
