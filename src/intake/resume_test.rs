//! A stream that is not what was read: purged, made anew, truncated, restored. Everything new in it is counted once.

use std::fs;
use std::path::Path;

use super::node_test::Node;
use super::stream_test::{Bus, Reading, Server};

/// A node that reads from a server of its own.
struct Stage {
    node: Node,
    server: Server,
    bus: Bus,
}

impl Stage {
    async fn open() -> Stage {
        let node = Node::open().await;
        let server = Server::start().await;
        let bus = Bus::on(server.url()).await;
        Stage { node, server, bus }
    }

    async fn reading(&self) -> Reading {
        let mut reading = Reading::begin(&self.node, &self.bus);
        reading.connected().await;
        reading
    }

    /// Publishes events that nobody has published before, and has them read.
    async fn publish(&self, word: &str, events: u32) {
        self.bus.publish_events(word, self.node.acme, 0..events).await;
    }

    async fn counted(&self) -> i64 {
        self.node.totals(self.node.acme).await.events
    }

    /// The kinds of anomalies that were recorded.
    async fn anomalies(&self) -> Vec<String> {
        let records = self.node.records("ingest.anomaly").await;
        records.iter().map(|record| record["kind"].as_str().unwrap().to_owned()).collect()
    }

    async fn gaps(&self) -> Vec<(i64, i64)> {
        let end = |record: &serde_json::Value, key: &str| record[key].as_i64().unwrap();
        self.node.records("ingest.gap").await.iter().map(|gap| (end(gap, "from"), end(gap, "to"))).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_gone_before_they_were_read_are_recorded() {
    let stage = Stage::open().await;
    let reading = stage.reading().await;
    stage.publish("read", 100).await;
    stage.bus.settled().await;
    reading.end().await;

    stage.publish("lost", 50).await;
    let stream = stage.bus.context.get_stream(&stage.bus.nats.stream).await.unwrap();
    stream.purge().sequence(131).await.unwrap();
    stream.delete_message(140).await.unwrap();
    let reading = stage.reading().await;
    stage.publish("new", 20).await;
    stage.bus.settled().await;
    reading.end().await;
    assert_eq!(stage.counted().await, 100 + 19 + 20);
    assert_eq!(stage.gaps().await, [(101, 130), (140, 140)]);

    // What was read may go; and nothing is told twice.
    stream.purge().await.unwrap();
    let reading = stage.reading().await;
    stage.publish("last", 5).await;
    stage.bus.settled().await;
    reading.end().await;
    assert_eq!(stage.counted().await, 144);
    assert_eq!(stage.gaps().await.len(), 2);
    assert!(stage.anomalies().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_made_anew_while_we_were_away_is_read_from_its_beginning() {
    let stage = Stage::open().await;
    let reading = stage.reading().await;
    stage.publish("a", 30).await;
    stage.bus.settled().await;
    let config = stage.bus.context.get_stream(&stage.bus.nats.stream).await.unwrap().cached_info().config.clone();
    reading.end().await;

    stage.bus.context.delete_stream(&stage.bus.nats.stream).await.unwrap();
    stage.bus.context.create_stream(config).await.unwrap();
    // More than there were, so that the numbers alone would say nothing; ten are known.
    stage.bus.publish_events("a", stage.node.acme, 20..60).await;
    let reading = stage.reading().await;
    stage.bus.settled().await;
    reading.end().await;
    assert_eq!(stage.counted().await, 60);
    assert_eq!(stage.anomalies().await, ["made_anew"]);
}

/// Measured on NATS 2.9: of 700 new events 399 were never delivered to a durable consumer that trusts its numbers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_lost_its_tail_delivers_700_of_700_new_events() {
    let mut stage = Stage::open().await;
    let reading = stage.reading().await;
    stage.publish("old", 1_000).await;
    stage.bus.settled().await;
    reading.end().await;

    stage.server.kill().await;
    cut_last_block(&stage.server.store());
    stage.server.restart().await;
    let stream = stage.bus.context.get_stream(&stage.bus.nats.stream).await.unwrap();
    assert!((300..900).contains(&stream.cached_info().state.last_sequence), "{:?}", stream.cached_info().state);
    stage.publish("new", 700).await;
    let reading = stage.reading().await;
    stage.bus.settled().await;
    reading.end().await;
    assert_eq!(stage.counted().await, 1_700);
    assert_eq!(stage.anomalies().await, ["content_changed"]);
}

/// Cuts the newest two fifths off the messages of the only stream.
fn cut_last_block(store: &Path) {
    let mut blocks = files(store);
    blocks.retain(|path| path.extension().is_some_and(|extension| extension == "blk"));
    blocks.sort();
    let last = blocks.last().expect("the stream has a block");
    let file = fs::OpenOptions::new().write(true).open(last).unwrap();
    file.set_len(file.metadata().unwrap().len() * 3 / 5).unwrap();
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_restored_from_an_earlier_copy_is_read_again() {
    let mut stage = Stage::open().await;
    let mut reading = stage.reading().await;
    stage.publish("a", 100).await;
    stage.bus.settled().await;
    stage.server.kill().await;
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&stage.server.store(), copy.path());
    stage.server.restart().await;
    reading.connected().await;
    stage.publish("b", 100).await;
    stage.bus.settled().await;
    assert_eq!(stage.counted().await, 200);

    reading.end().await;
    stage.server.kill().await;
    fs::remove_dir_all(stage.server.store()).unwrap();
    copy_folder(copy.path(), &stage.server.store());
    stage.server.restart().await;
    // Numbers 101 to 250: past what was read, with other content.
    stage.publish("c", 150).await;
    let reading = stage.reading().await;
    stage.bus.settled().await;
    reading.end().await;
    assert_eq!(stage.counted().await, 350);
    assert_eq!(stage.anomalies().await, ["content_changed"]);
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in files(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&path, target).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_somebody_deletes_is_made_again() {
    let stage = Stage::open().await;
    let mut reading = stage.reading().await;
    for round in 0..3 {
        stage.publish(&format!("r{round}-"), 300).await;
        let stream = stage.bus.context.get_stream(&stage.bus.nats.stream).await.unwrap();
        // Between two sessions there may be none.
        let _ = stream.delete_consumer(&stage.bus.nats.consumer).await;
        stage.publish(&format!("s{round}-"), 100).await;
        reading.connected().await;
    }
    stage.bus.settled().await;
    reading.end().await;
    assert_eq!(stage.counted().await, 1_200);
    assert!(stage.anomalies().await.is_empty() && stage.gaps().await.is_empty());
}
