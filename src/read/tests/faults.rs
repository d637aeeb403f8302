//! What a reader does when bytes are damaged, requests fail or hang, and the store goes away.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_cache_block_is_fetched_again_and_counted() {
    let rig = Rig::new();
    let (reader, bytes) = (rig.reader(), content(8, 8 * BLOCK));
    let source = rig.archive(1, &bytes).await;
    read(&reader, &source, 0, bytes.len()).await.unwrap();
    let before = rig.gets();
    rig.flip_in_cache("data", 3 * BLOCK_BYTES + 1000);
    assert_eq!(read(&reader, &source, 0, bytes.len()).await.unwrap(), bytes);
    assert_eq!(rig.gets(), (before.0 + 1, before.1));
    assert_eq!(reader.cache().stats().damaged_blocks, 1);
    assert_eq!(read(&reader, &source, 0, bytes.len()).await.unwrap(), bytes);
    assert_eq!(rig.gets().0, before.0 + 1, "it was mended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_is_an_error_for_its_block_and_for_no_other() {
    let rig = Rig::new();
    let (reader, bytes) = (rig.reader(), content(9, 8 * BLOCK));
    let source = rig.archive(1, &bytes).await;
    let mut bad = bytes.to_vec();
    bad[2 * BLOCK + 5] ^= 0x40;
    rig.store.put_overwrite(&source.log_key, bad.into()).await.unwrap();
    // A read at the start fetches the damaged block too, but does not need it.
    assert_eq!(read(&reader, &source, 0, 100).await.unwrap(), bytes[..100]);
    until(|| count(&reader.counters().refetched_damaged) > 0).await;
    for (offset, len) in [(2 * BLOCK, 1), (BLOCK, 2 * BLOCK), (0, bytes.len())] {
        match read(&reader, &source, offset as u64, len).await {
            Err(ReadError::Damaged { object, what }) => {
                assert_eq!((object, what.as_str()), (source.log_key.clone(), "block 2"));
            }
            other => panic!("{offset} {len}: {other:?}"),
        }
    }
    let after = 3 * BLOCK;
    let got = read(&reader, &source, after as u64, 5 * BLOCK).await.unwrap();
    assert_eq!(got, bytes[after..]);
    // And once it is mended in the store, it reads: what is on its way still has the old bytes.
    until(|| reader.inner.flights.objects() == 0).await;
    rig.store.put_overwrite(&source.log_key, bytes.clone()).await.unwrap();
    assert_eq!(read(&reader, &source, 0, bytes.len()).await.unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_cut_object_is_an_error_and_never_a_short_read() {
    let rig = Rig::new();
    let (reader, bytes) = (rig.reader(), content(10, 4 * BLOCK));
    let source = rig.archive(1, &bytes).await;
    rig.store.put_overwrite(&source.log_key, bytes.slice(..3 * BLOCK)).await.unwrap();
    let cut = read(&reader, &source, 0, bytes.len()).await;
    assert!(matches!(cut, Err(ReadError::Missing { .. })), "{cut:?}");
    rig.store.delete(&source.log_key).await.unwrap();
    let gone = read(&reader, &source, 0, 10).await;
    assert!(matches!(gone, Err(ReadError::Missing { .. })), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_cached_blocks_are_served_and_others_fail() {
    let rig = Rig::new();
    let (reader, bytes) = (rig.reader(), content(11, 64 * BLOCK));
    let source = rig.archive(1, &bytes).await;
    read(&reader, &source, 30 * BLOCK_BYTES, 2 * BLOCK).await.unwrap();
    rig.set(Fault::Fail(StoreErrorKind::Unavailable));
    for _ in 0..5 {
        let lost = read(&reader, &source, 0, 10).await;
        assert!(matches!(lost, Err(ReadError::Unavailable(_))), "{lost:?}");
        let got = read(&reader, &source, 30 * BLOCK_BYTES + 7, BLOCK).await.unwrap();
        assert_eq!(got, bytes[30 * BLOCK + 7..31 * BLOCK + 7]);
    }
    let mixed = read(&reader, &source, 31 * BLOCK_BYTES, 2 * BLOCK).await;
    assert!(matches!(mixed, Err(ReadError::Unavailable(_))), "{mixed:?}");
    rig.set(Fault::Pass);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(read(&reader, &source, 0, bytes.len()).await.unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_is_given_up_within_the_deadline() {
    let mut rig = Rig::new();
    rig.config.deadline_ms = 300;
    let (reader, bytes) = (rig.reader(), content(12, 4 * BLOCK));
    let source = rig.archive(1, &bytes).await;
    rig.set(Fault::Hang);
    let lost = read(&reader, &source, 0, 10).await.unwrap_err();
    assert!(matches!(lost, ReadError::Unavailable(_) | ReadError::Deadline { .. }), "{lost:?}");
    let lost = reader.aux(&source).await.unwrap_err();
    assert_eq!(lost, ReadError::Deadline { deadline_ms: 300 });
    assert!(count(&reader.counters().deadline_expired) >= 1);
    assert_eq!(count(&reader.counters().errors), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failed_request_is_repeated_and_the_reader_does_not_notice() {
    let rig = Rig::new();
    let (reader, bytes) = (rig.reader(), content(13, 4 * BLOCK));
    let source = rig.archive(1, &bytes).await;
    reader.aux(&source).await.unwrap();
    rig.faults.lock().script.push_back(Fault::Fail(StoreErrorKind::Unavailable));
    assert_eq!(read(&reader, &source, 0, 100).await.unwrap(), bytes[..100]);
    assert_eq!(rig.gets().0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_store_the_cache_alone_answers() {
    let rig = Rig::new();
    let bytes = content(14, 16 * BLOCK);
    let source = rig.archive(1, &bytes).await;
    read(&rig.reader(), &source, 8 * BLOCK_BYTES, 10).await.unwrap();
    let reader = rig.reader();
    let cache = Arc::clone(reader.cache());
    let alone = Reader::new(None, cache, rig.config, Handle::current());
    let at = 8 * BLOCK;
    assert_eq!(read(&alone, &source, at as u64, 10).await.unwrap(), bytes[at..at + 10]);
    let lost = read(&alone, &source, 0, 10).await;
    assert!(matches!(lost, Err(ReadError::Unavailable(_))), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prefetches_that_hang_do_not_delay_a_demand() {
    let mut rig = Rig::new();
    rig.config.inflight_requests_max = 4;
    rig.config.deadline_ms = 60_000;
    let (reader, bytes) = (rig.reader(), content(15, 32 << 20));
    let (followed, wanted) = (rig.archive(1, &bytes).await, rig.archive(2, &bytes).await);
    for mib in (0..24).step_by(3) {
        read(&reader, &followed, mib << 20, 10).await.unwrap();
    }
    until(|| reader.inner.prefetches.load(Ordering::Relaxed) == 0).await;
    rig.set(Fault::Hang);
    rig.faults.lock().only = Some(followed.log_key.clone());
    let (streams, broker) = (ReadStreams::default(), ReadHint { broker: true });
    for mib in (0..24).step_by(3) {
        reader.read(&followed, &streams, mib << 20, 10, broker).await.unwrap();
    }
    until(|| reader.inner.prefetches.load(Ordering::Relaxed) >= 8).await;
    until(|| count(&reader.counters().prefetch_fetches) == 3).await;
    let got = read(&reader, &wanted, 5 << 20, 10).await.unwrap();
    assert_eq!(got, bytes[5 << 20..][..10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_read_waits_for_can_be_seen() {
    let mut rig = Rig::new();
    rig.config.deadline_ms = 60_000;
    rig.config.inflight_requests_max = 2;
    let (reader, bytes) = (rig.reader(), content(18, 64 * BLOCK));
    let sources = [rig.archive(1, &bytes).await, rig.archive(2, &bytes).await];
    for source in &sources {
        reader.aux(source).await.unwrap();
    }
    assert!(reader.fetches().is_empty());
    rig.set(Fault::Hang);
    let reads: Vec<_> = (0..3)
        .map(|n| {
            let (reader, source) = (reader.clone(), sources[n % 2].clone());
            let at = n as u64 * 20 * BLOCK as u64;
            tokio::spawn(async move { super::read(&reader, &source, at, 10).await })
        })
        .collect();
    let waits_for =
        |what: &str| reader.fetches().iter().filter(|f| f.is_demand && f.waits_for == what).count();
    until(|| waits_for("the store's first bytes") == 2).await;
    until(|| waits_for("its turn among the requests") == 1).await;
    let first = reader.fetches().into_iter().find(|f| f.bytes.start == 0).unwrap();
    assert!(first.is_for(&sources[0].log_key, &(0..10)), "{first:?}");
    reads.iter().for_each(|r| r.abort());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_failed_is_counted_while_it_is_repeated() {
    let mut rig = Rig::new();
    rig.config.deadline_ms = 60_000;
    let (reader, bytes) = (rig.reader(), content(19, 8 * BLOCK));
    let source = rig.archive(1, &bytes).await;
    reader.aux(&source).await.unwrap();
    rig.faults.lock().script.push_back(Fault::Fail(StoreErrorKind::Unavailable));
    rig.set(Fault::Hang);
    let read = {
        let (reader, source) = (reader.clone(), source.clone());
        tokio::spawn(async move { super::read(&reader, &source, 0, 10).await })
    };
    until(|| reader.fetches().iter().any(|f| f.failures == 1)).await;
    read.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_prefetch_is_silent_and_its_blocks_are_fetched_on_demand() {
    let rig = Rig::new();
    let (reader, bytes) = (rig.reader(), content(16, 64 * BLOCK));
    let source = rig.archive(1, &bytes).await;
    let (streams, broker) = (ReadStreams::default(), ReadHint { broker: true });
    read(&reader, &source, 0, 10).await.unwrap();
    rig.set(Fault::Fail(StoreErrorKind::Unavailable));
    assert_eq!(reader.read(&source, &streams, 0, 17, broker).await.unwrap(), bytes[..17]);
    until(|| count(&reader.counters().prefetch_failures) > 0).await;
    rig.set(Fault::Pass);
    let got = reader.read(&source, &streams, 0, 16 * BLOCK, broker).await.unwrap();
    assert_eq!(got, bytes[..16 * BLOCK]);
    assert_eq!(count(&reader.counters().errors), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_aux_is_fetched_again_from_the_store_and_never_believed() {
    let rig = Rig::new();
    let source = rig.archive(1, &content(18, 1000)).await;
    rig.reader().aux(&source).await.unwrap();
    rig.flip_in_cache("aux", 200);
    let reader = rig.reader();
    reader.aux(&source).await.unwrap();
    assert_eq!((reader.cache().stats().damaged_aux, rig.gets().1), (1, 2));
    drop(reader);

    rig.flip_in_cache("aux", 200);
    let good = rig.store.get(&source.aux_key, MIB).await.unwrap();
    let mut bad = good.to_vec();
    bad[60] ^= 2;
    rig.store.put_overwrite(&source.aux_key, bad.into()).await.unwrap();
    let reader = rig.reader();
    let lost = reader.aux(&source).await;
    assert!(matches!(lost, Err(ReadError::Damaged { .. })), "{lost:?}");
    let lost = read(&reader, &source, 0, 10).await;
    assert!(matches!(lost, Err(ReadError::Damaged { .. })), "{lost:?}");
}
