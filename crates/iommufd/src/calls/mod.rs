// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commands on I/O address spaces and on the context itself, one file a
//! topic. Each shows its checks in Linux's order.

mod change_process;
mod ioas;
mod map;
mod option;
mod ranges;
mod vfio_ioas;
