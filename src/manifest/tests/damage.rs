//! Documents in the store that are not what was written: never believed, and where something else
//! says the same, stepped around.

use super::*;

fn is_prefix(part: &Chain, whole: &Chain) -> bool {
    part.segments().iter().all(|(base, segment)| whole.find(*base) == Some(segment))
}

#[tokio::test]
async fn no_flipped_byte_in_a_delta_is_believed() {
    let store = memory();
    let chain = grown(&store, 2).await;
    let name = ManifestName::Delta(2);
    let length = store.get(&name.key(&id()), 1 << 20).await.unwrap().len();
    for at in 0..length - 1 {
        flip(&store, &name, at).await;
        match reader(&store).load(&id()).await {
            Ok(loaded) => assert_eq!(loaded, chain, "byte {at} was believed"),
            Err(error) => assert!(error.is_damage(), "byte {at}: {error}"),
        }
        let readable = reader(&store).load_readable(&id()).await.unwrap();
        assert!(is_prefix(&readable.chain, &chain), "byte {at}");
        flip(&store, &name, at).await;
    }
    assert_eq!(reader(&store).load(&id()).await.unwrap(), chain);
}

#[tokio::test]
async fn a_damaged_hint_checkpoint_or_page_costs_requests_and_not_truth() {
    let store = memory();
    let chain = grown(&store, 70).await;
    let names = listed(&store).await;
    let derived: Vec<_> =
        names.into_iter().filter(|n| !matches!(n, ManifestName::Delta(_))).collect();
    assert_eq!(derived.len(), 3, "head, root and one page");
    for name in derived {
        let length = store.get(&name.key(&id()), 1 << 20).await.unwrap().len();
        for at in (0..length - 1).step_by(1 + length / 60) {
            flip(&store, &name, at).await;
            let loaded = reader(&store).load(&id()).await;
            assert_eq!(loaded.unwrap(), chain, "{name}, byte {at}");
            flip(&store, &name, at).await;
        }
        let key = name.key(&id());
        let bytes = store.get(&key, 1 << 20).await.unwrap();
        store.delete(&key).await.unwrap();
        assert_eq!(reader(&store).load(&id()).await.unwrap(), chain, "{name} lost");
        store.put_overwrite(&key, bytes).await.unwrap();
    }
}

#[tokio::test]
async fn a_missing_version_is_a_hole_and_not_the_end() {
    let store = memory();
    grown(&store, 20).await;
    for version in [1, 7, 16] {
        let key = ManifestName::Delta(version).key(&id());
        let bytes = store.get(&key, 1 << 20).await.unwrap();
        store.delete(&key).await.unwrap();
        let error = reader(&store).load(&id()).await.unwrap_err();
        assert!(
            matches!(error, ManifestError::Hole { version: v, .. } if v == version),
            "{version}: {error}"
        );
        let readable = reader(&store).load_readable(&id()).await.unwrap();
        assert_eq!(readable.chain.version(), version - 1);
        store.put_overwrite(&key, bytes).await.unwrap();
    }
}

#[tokio::test]
async fn deltas_that_a_checkpoint_contains_are_not_needed() {
    let store = memory();
    let chain = grown(&store, 70).await;
    for version in 1..=64 {
        store.delete(&ManifestName::Delta(version).key(&id())).await.unwrap();
    }
    assert_eq!(reader(&store).load(&id()).await.unwrap(), chain);
    store.delete(&ManifestName::Head.key(&id())).await.unwrap();
    assert_eq!(reader(&store).load(&id()).await.unwrap(), chain);
}

#[tokio::test]
async fn an_old_hint_is_good_enough() {
    let store = memory();
    let head = ManifestName::Head.key(&id());
    let mut chain = grown(&store, 16).await;
    let old = store.get(&head, 1 << 20).await.unwrap();
    grow(&reader(&store), &mut chain, 150).await;
    store.put_overwrite(&head, old).await.unwrap();
    assert_eq!(reader(&store).load(&id()).await.unwrap(), chain);
}

/// The document with another version in its frame, which its checksum does not cover.
async fn make_newer(store: &Store, name: &ManifestName) {
    let key = name.key(&id());
    let bytes = store.get(&key, 1 << 20).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let newer = text.replacen("\"version\":1,", "\"version\":2,", 1);
    assert_ne!(newer, text);
    store.put_overwrite(&key, newer.into()).await.unwrap();
}

#[tokio::test]
async fn a_version_of_a_newer_everlog_is_refused_by_name() {
    let store = memory();
    grown(&store, 3).await;
    make_newer(&store, &ManifestName::Delta(3)).await;
    let error = reader(&store).load(&id()).await.unwrap_err();
    assert!(matches!(error, ManifestError::UnknownVersion { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("manifest/00000000000000000003") && text.contains("version 2"), "{text}");
    let mut older = Chain::empty(id());
    let error = reader(&store).refresh(&mut older).await.unwrap_err();
    assert!(error.is_damage() && older.version() == 2, "{error}");
    // A writer does not commit over it either.
    let error = reader(&store).commit(&mut older, add(20)).await.unwrap_err();
    assert!(error.is_damage(), "{error}");
    assert_eq!(listed(&store).await.len(), 3);
}

#[tokio::test]
async fn documents_in_each_others_place_are_found_out() {
    let store = memory();
    grown(&store, 3).await;
    let two = store.get(&ManifestName::Delta(2).key(&id()), 1 << 20).await.unwrap();
    store.put_overwrite(&ManifestName::Delta(3).key(&id()), two).await.unwrap();
    let error = reader(&store).load(&id()).await.unwrap_err();
    assert!(error.to_string().contains("says that it is version 2"), "{error}");
}

#[tokio::test]
async fn a_store_that_fails_is_not_taken_for_an_empty_or_shorter_chain() {
    let store = memory();
    grown(&store, 70).await;
    for nth in 0..12 {
        let count = AtomicU64::new(0);
        let hook = move |_: Op, _: &crate::types::ObjectKey| {
            let now = count.fetch_add(1, Ordering::SeqCst);
            if now == nth { Fault::Fail(StoreErrorKind::Unavailable) } else { Fault::Pass }
        };
        let log = ManifestLog::new(Some(store.with_faults(Arc::new(hook))), None);
        let result = log.load(&id()).await;
        // Head, root, page, six deltas, the one that does not exist: ten requests.
        assert_eq!(result.is_err(), nth < 10, "request {nth}");
        assert!(result.err().is_none_or(|e| e.is_transient() && !e.is_damage()));
    }
}
