//! Several writers on one chain, and one whose connection breaks at the worst moment.

use super::*;

/// Plans "append ten offsets at the end" until it has been committed `count` times.
async fn append_many(log: ManifestLog, count: usize) -> (Chain, usize) {
    let mut chain = log.load(&id()).await.unwrap();
    let (mut done, mut conflicts) = (0, 0);
    while done < count {
        let next = chain.end_offset().unwrap_or(0);
        match log.commit(&mut chain, add(next)).await.unwrap() {
            CommitOutcome::Committed => done += 1,
            CommitOutcome::Conflict => conflicts += 1,
        }
        tokio::task::yield_now().await;
    }
    (chain, conflicts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_race_lose_nothing_and_end_with_equal_chains() {
    let store = memory();
    let writers: Vec<_> = (0..3).map(|_| tokio::spawn(append_many(reader(&store), 50))).collect();
    let mut chains = Vec::new();
    for writer in writers {
        chains.push(writer.await.unwrap().0);
    }
    for chain in &mut chains {
        reader(&store).refresh(chain).await.unwrap();
    }
    let fresh = reader(&store).load(&id()).await.unwrap();
    assert!(chains.iter().all(|chain| *chain == fresh));
    assert_eq!((fresh.version(), fresh.segments().len()), (150, 150));
    assert_eq!(fresh.end_offset(), Some(1500));
}

#[tokio::test]
async fn whoever_comes_second_is_told_and_sees_the_firsts_change() {
    let store = memory();
    let (one, two) = (reader(&store), reader(&store));
    let mut first = grown(&store, 2).await;
    let mut second = first.clone();
    assert_eq!(one.commit(&mut first, add(20)).await.unwrap(), CommitOutcome::Committed);
    let theirs = vec![Change::Add(segment(20, 99))];
    assert_eq!(two.commit(&mut second, theirs).await.unwrap(), CommitOutcome::Conflict);
    assert_eq!(second, first);
}

/// A log whose first write of a version meets the fault.
fn faulty_once(store: &Store, fault: Fault) -> (ManifestLog, Arc<AtomicBool>) {
    let reached = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&reached);
    let hook = move |op: Op, key: &crate::types::ObjectKey| {
        let hit = op == Op::Put && key.as_str().contains("manifest/");
        if hit && !seen.swap(true, Ordering::SeqCst) { fault } else { Fault::Pass }
    };
    (ManifestLog::new(Some(store.with_faults(Arc::new(hook))), None), reached)
}

#[tokio::test]
async fn a_commit_whose_reply_is_lost_is_found_to_be_ours() {
    let store = memory();
    let mut chain = grown(&store, 1).await;
    let (log, reached) = faulty_once(&store, Fault::LoseReply(StoreErrorKind::Unavailable));
    assert_eq!(log.commit(&mut chain, add(10)).await.unwrap(), CommitOutcome::Committed);
    assert!(reached.load(Ordering::SeqCst));
    assert_eq!(reader(&store).load(&id()).await.unwrap(), chain);
}

#[tokio::test]
async fn a_repeated_request_that_meets_its_own_success_is_found_to_be_ours() {
    let store = memory();
    let mut chain = grown(&store, 1).await;
    let (log, reached) = faulty_once(&store, Fault::LoseReply(StoreErrorKind::AlreadyExists));
    assert_eq!(log.commit(&mut chain, add(10)).await.unwrap(), CommitOutcome::Committed);
    assert!(reached.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_commit_that_did_not_happen_is_an_error_and_can_be_made_again() {
    let store = memory();
    let mut chain = grown(&store, 1).await;
    let before = chain.clone();
    let (log, reached) = faulty_once(&store, Fault::Fail(StoreErrorKind::Unavailable));
    let error = log.commit(&mut chain, add(10)).await.unwrap_err();
    assert!(error.is_transient() && reached.load(Ordering::SeqCst), "{error}");
    assert_eq!(chain, before);
    assert_eq!(log.commit(&mut chain, add(10)).await.unwrap(), CommitOutcome::Committed);
}

#[tokio::test]
async fn an_outcome_that_stays_unknown_is_said_so_and_found_out_by_the_next_commit() {
    let store = memory();
    let mut chain = grown(&store, 1).await;
    let before = chain.clone();
    let down = Arc::new(AtomicBool::new(true));
    let seen = Arc::clone(&down);
    // The version arrives, its reply does not, and then nothing answers.
    let hook = move |op: Op, _: &crate::types::ObjectKey| match (seen.load(Ordering::SeqCst), op) {
        (false, _) => Fault::Pass,
        (true, Op::Put) => Fault::LoseReply(StoreErrorKind::Unavailable),
        (true, _) => Fault::Fail(StoreErrorKind::Unavailable),
    };
    let log = ManifestLog::new(Some(store.with_faults(Arc::new(hook))), None);
    let error = log.commit(&mut chain, add(10)).await.unwrap_err();
    assert!(matches!(error, ManifestError::Unresolved { version: 2, .. }), "{error}");
    assert_eq!(chain, before);
    down.store(false, Ordering::SeqCst);
    // The same plan again: the store has it already, so plan anew on what is there.
    let again = log.commit(&mut chain, vec![Change::Add(segment(10, 21))]).await.unwrap();
    assert_eq!(again, CommitOutcome::Conflict);
    assert_eq!(chain.find(10).unwrap().end_offset, 20);
    assert_eq!(chain.version(), 2);
}

#[tokio::test]
async fn a_commit_that_is_dropped_half_way_leaves_a_chain_that_goes_on() {
    let store = memory();
    let mut chain = grown(&store, 1).await;
    let hook = |op: Op, _: &crate::types::ObjectKey| match op {
        Op::Put => Fault::LoseReply(StoreErrorKind::Unavailable),
        _ => Fault::Hang,
    };
    let stuck = ManifestLog::new(Some(store.with_faults(Arc::new(hook))), None);
    let wait = std::time::Duration::from_millis(50);
    tokio::time::timeout(wait, stuck.commit(&mut chain, add(10))).await.unwrap_err();
    assert_eq!(chain.version(), 1);
    let log = reader(&store);
    assert_eq!(log.commit(&mut chain, add(10)).await.unwrap(), CommitOutcome::Conflict);
    assert_eq!(chain, reader(&store).load(&id()).await.unwrap());
}

#[tokio::test]
async fn checkpoints_and_hints_that_fail_do_not_fail_the_commit() {
    let store = memory();
    let failed = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&failed);
    let hook = move |op: Op, key: &crate::types::ObjectKey| {
        let derived = key.as_str().ends_with("page") || key.as_str().ends_with("head");
        if op == Op::Put && derived {
            seen.fetch_add(1, Ordering::SeqCst);
            return Fault::Fail(StoreErrorKind::Denied);
        }
        Fault::Pass
    };
    let log = ManifestLog::new(Some(store.with_faults(Arc::new(hook))), None);
    let mut chain = Chain::empty(id());
    grow(&log, &mut chain, 130).await;
    assert!(failed.load(Ordering::SeqCst) >= 10, "the faults were reached");
    let loaded = reader(&store).load(&id()).await.unwrap();
    assert_eq!(loaded, chain);
    // The next checkpoint makes up for the lost ones.
    grow(&reader(&store), &mut chain, 192).await;
    assert_eq!(reader(&store).load(&id()).await.unwrap(), chain);
}
