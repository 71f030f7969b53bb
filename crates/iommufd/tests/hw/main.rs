// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! HWPTs, devices, dirty tracking, page requests, vIOMMUs and the selftest's
//! side, by the calls of programs and of VFIO.
#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod attach;
mod dirty;
mod fault;
mod fault_model;
mod group;
mod hwpt;
mod lab;
mod model;
mod pri;
mod pri_laws;
mod pri_rules;
mod scenarios;
mod selftest;
mod viommu;
mod vtd;
