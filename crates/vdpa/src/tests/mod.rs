// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the rules, by section of the sheet.

mod accounts;
mod backend;
mod bus;
mod messages;
mod model;
mod node;
mod programs;
mod reset;
mod rings;
mod start;
mod status;
