//! Which local bytes are released next: a pure function of a snapshot and a time.
//!
//! Oldest first until the budget is kept; and whatever is older than the age limit. What may not go
//! (active, not archived, above the high watermark or the recovery point, compacted, held) is not a
//! candidate, and counts against the budget all the same. Bytes are those that a file occupies on disk: the
//! budget is for the disk.

/// A segment that may be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate<K> {
    pub key: K,
    pub base_offset: i64,
    pub disk_bytes: u64,
    /// Last write, nanoseconds since the epoch.
    pub mtime_ns: u64,
}

/// Limits, and what stands against them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// What all logs in `hot/` occupy, candidates or not.
    pub hot_bytes_now: u64,
    pub hot_bytes_max: Option<u64>,
    pub age_ns_max: Option<u64>,
    pub now_ns: u64,
    /// What the disk lacks to its reserve, whatever the limits say.
    pub short_bytes: u64,
}

/// The order in which they are looked at.
pub(super) fn oldest_first<K>(candidates: &mut [Candidate<K>]) {
    candidates.sort_by_key(|c| (c.mtime_ns, c.base_offset));
}

impl Budget {
    /// Whether this one is released next. What was really released is to be told to [`Self::released`];
    /// what could not be does not count.
    pub fn wants<K>(&self, candidate: &Candidate<K>) -> bool {
        let age_ns = self.now_ns.saturating_sub(candidate.mtime_ns);
        let too_old = self.age_ns_max.is_some_and(|max| age_ns > max);
        candidate.disk_bytes > 0 && (too_old || self.lacks_room())
    }

    /// Whether more is on local disk than there is to be.
    pub fn lacks_room(&self) -> bool {
        self.hot_bytes_max.is_some_and(|max| self.hot_bytes_now > max) || self.short_bytes > 0
    }

    /// So many bytes less are in `hot/`.
    pub fn released(&mut self, disk_bytes: u64) {
        self.hot_bytes_now = self.hot_bytes_now.saturating_sub(disk_bytes);
        self.short_bytes = self.short_bytes.saturating_sub(disk_bytes);
    }
}

/// What decides whether a segment's bytes may go at all (law 3).
#[derive(Clone, Copy, Debug)]
pub(super) struct Safety {
    pub hot: bool,
    /// A durable, committed manifest contains this content.
    pub archived: bool,
    pub next_base: Option<i64>,
    pub committed: Option<i64>,
    pub recovery_point: Option<i64>,
    pub compacted: bool,
    /// Somebody has it open through the page cache. The log cleaner waits for what is cold, and would hold pages
    /// meanwhile that others want.
    pub paged: bool,
}

/// Whether the segment is a candidate.
pub(super) fn may_go(s: &Safety, evict_compacted: bool) -> bool {
    let below =
        |limit: Option<i64>| s.next_base.zip(limit).is_some_and(|(next, limit)| next <= limit);
    s.hot
        && s.archived
        && below(s.committed)
        && below(s.recovery_point)
        && (!s.compacted || evict_compacted && !s.paged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates() -> Vec<Candidate<&'static str>> {
        [("new", 0, 10, 300), ("old", 5, 10, 100), ("tie", 4, 10, 100), ("empty", 0, 0, 1)]
            .map(|(key, base_offset, disk_bytes, mtime_ns)| Candidate {
                key,
                base_offset,
                disk_bytes,
                mtime_ns,
            })
            .to_vec()
    }

    fn budget(now: u64, max: Option<u64>, age: Option<u64>) -> Budget {
        Budget {
            hot_bytes_now: now,
            hot_bytes_max: max,
            age_ns_max: age,
            now_ns: 1000,
            short_bytes: 0,
        }
    }

    fn choose(mut candidates: Vec<Candidate<&'static str>>, budget: &Budget) -> Vec<&'static str> {
        oldest_first(&mut candidates);
        let (mut budget, mut chosen) = (*budget, Vec::new());
        for candidate in candidates {
            if budget.wants(&candidate) {
                budget.released(candidate.disk_bytes);
                chosen.push(candidate.key);
            }
        }
        chosen
    }

    #[test]
    fn the_oldest_go_first_until_the_budget_is_kept() {
        assert_eq!(choose(candidates(), &budget(100, Some(100), None)), Vec::<&str>::new());
        assert_eq!(choose(candidates(), &budget(101, Some(100), None)), ["tie"]);
        assert_eq!(choose(candidates(), &budget(115, Some(100), None)), ["tie", "old"]);
        assert_eq!(choose(candidates(), &budget(900, Some(0), None)), ["tie", "old", "new"]);
        assert_eq!(choose(candidates(), &budget(900, None, None)), Vec::<&str>::new());
    }

    #[test]
    fn what_is_older_than_the_limit_goes_whatever_the_budget() {
        assert_eq!(choose(candidates(), &budget(1, None, Some(800))), ["tie", "old"]);
        assert_eq!(choose(candidates(), &budget(1, None, Some(900))), Vec::<&str>::new());
    }

    #[test]
    fn on_a_disk_with_little_space_the_oldest_go_until_its_reserve_is_free() {
        let roomy = budget(20, Some(1000), None);
        assert_eq!(choose(candidates(), &roomy), Vec::<&str>::new());
        assert_eq!(choose(candidates(), &Budget { short_bytes: 11, ..roomy }), ["tie", "old"]);
    }

    #[test]
    fn nothing_goes_that_a_law_protects() {
        let safe = Safety {
            hot: true,
            archived: true,
            next_base: Some(10),
            committed: Some(10),
            recovery_point: Some(10),
            compacted: false,
            paged: true,
        };
        assert!(may_go(&safe, false));
        for protected in [
            Safety { hot: false, ..safe },
            Safety { archived: false, ..safe },
            Safety { next_base: None, ..safe },
            Safety { committed: Some(9), ..safe },
            Safety { committed: None, ..safe },
            Safety { recovery_point: Some(9), ..safe },
            Safety { recovery_point: None, ..safe },
            Safety { compacted: true, ..safe },
        ] {
            assert!(!may_go(&protected, false), "{protected:?}");
        }
        assert!(may_go(&Safety { compacted: true, paged: false, ..safe }, true));
        assert!(!may_go(&Safety { compacted: true, ..safe }, true));
    }
}
