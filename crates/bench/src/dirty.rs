// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dirty tracking of 16 GiB of pages, nested tables and PASIDs, where devices
//! and the log meet: no call of a program is in these rows.

use crate::table::{Figures, Goal, Table};
use crate::translation::measure::dirty::{Dirty, Kind, Order, cached, mark, scan};
use crate::translation::measure::{Row, bytes_a_map, bytes_of_one_map};

/// Rows of dirty tracking.
pub(crate) fn rows(table: &mut Table) {
    for (what, order, threads) in [
        ("marking a page dirty, in order / a plain or", Order::Sequential, 1),
        ("marking a page dirty, at random / a plain or", Order::Random, 1),
        ("marking a page dirty, in order, 2 threads / a plain or", Order::Sequential, 2),
        ("marking a page dirty, at random, 2 threads / a plain or", Order::Random, 2),
    ] {
        table.row(what, Goal::AtMost(1.5, ""), || {
            let mark = mark(threads, order);
            Ok(Figures {
                ours: format!("{:.1} ns", mark.ours),
                other: format!("alone {:.1} ns, in place {:.1} ns", mark.alone, mark.in_place),
                figure: mark.ours / mark.plain(),
            })
        });
    }
    for (what, dirty) in [
        ("dirty bitmap of 16 GiB, none / copy and clear", Dirty::None),
        ("dirty bitmap of 16 GiB, 1% / copy and clear", Dirty::OnePercent),
        ("dirty bitmap of 16 GiB, all / copy and clear", Dirty::All),
    ] {
        table.row(what, Goal::AtMost(2.0, ""), || Ok(times(scan("scan", dirty))));
    }
    for (what, kind) in [
        ("translation, nested and cached / a plain one", Kind::Nested),
        ("translation, PASID and cached / a plain one", Kind::Pasid),
    ] {
        table.row(what, Goal::AtMost(1.1, ""), || Ok(times(cached("cached", kind))));
    }
    table.row("table of one map of 16 GiB", Goal::AtMost(4096.0, " B"), || Ok(bytes(bytes_of_one_map())));
    table.row("table of 4 M maps, each", Goal::AtMost(64.0, " B"), || Ok(bytes(bytes_a_map("4m", 4 << 20))));
}

fn times(row: Row) -> Figures {
    Figures::times((row.ours, row.peer))
}

fn bytes(row: Row) -> Figures {
    Figures { ours: format!("{:.0} B", row.ours), other: "-".into(), figure: row.ours }
}
