// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rules of iommufd-api.md and iommufd-selftest.md, one file a topic.

mod envelope;
