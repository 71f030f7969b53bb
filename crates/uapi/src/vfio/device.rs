// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests on an open device.
