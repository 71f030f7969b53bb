// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The NVMe controller, driven as a program would.

mod fixture;
mod init;
