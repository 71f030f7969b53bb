// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Containers: API-007 to API-022.

use uapi::Errno;
use uapi::vfio::container::{CHECK_EXTENSION, GET_API_VERSION, SET_IOMMU};

use crate::testing::Lab;

/// API-008
#[test]
fn version_is_0_in_every_state() {
    let mut lab = Lab::with_group();
    let empty = lab.open_container();
    assert_eq!(lab.ioctl(empty, GET_API_VERSION, 0), Ok(0));
    let (set, _) = lab.container_with(7, 3);
    assert_eq!(lab.ioctl(set, GET_API_VERSION, 0), Ok(0));
    assert_eq!(lab.ioctl(empty, SET_IOMMU, 3), Err(Errno::EINVAL));
    assert_eq!(lab.ioctl(empty, CHECK_EXTENSION, 3), Ok(1));
}
