// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The subsystem as a program sees it, one file a topic.

mod container;
