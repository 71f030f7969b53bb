// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests with real programs share: a place of their own, the ways in
//! which a program can be run under `vfuse`, children that never outlive their
//! time, a guest, huge pages.
//!
//! Nothing is skipped quietly: whatever is missing fails the test and says
//! what to do.
#![forbid(unsafe_code)]

mod child;
mod guest;
mod hugepages;
mod kselftest;
mod live;
mod machine;
mod network;
mod place;
mod run;

pub use child::{Outcome, run_child};
pub use guest::{Guest, GuestReport, TestDisk, tool};
pub use hugepages::HugePages;
pub use kselftest::{Expected, Report, Verdict, selftest};
pub use live::{Live, Monitor};
pub use machine::{Machine, arcs};
pub use network::{Network, PEER};
pub use place::{Place, build_file, example, need_program, vfuse_binary};
pub use run::{Vfuse, Way};

/// Makes one test for each way in which a program can be run: as root in a
/// mount namespace, without root in a user namespace, and with path names
/// redirected, as root and not.
///
/// ```
/// programs::in_each_way! {
///     fn exits(way) {
///         let outcome = programs::Vfuse::new(way).run(["true"]);
///         outcome.succeeded();
///     }
/// }
/// ```
#[macro_export]
macro_rules! in_each_way {
    ($($(#[$attribute:meta])* fn $name:ident($way:ident) $body:block)*) => {$(
        $(#[$attribute])*
        mod $name {
            #[allow(unused_imports)] // a check may need nothing from its file
            use super::*;

            fn check($way: $crate::Way) $body

            #[test]
            fn root_namespaces() {
                check($crate::Way::RootNamespaces);
            }

            #[test]
            fn root_paths() {
                check($crate::Way::RootPaths);
            }

            #[test]
            fn nobody_userns() {
                check($crate::Way::NobodyUserns);
            }

            #[test]
            fn nobody_paths() {
                check($crate::Way::NobodyPaths);
            }
        }
    )*};
}
