//! The numbers as Prometheus reads them.

use super::{Histogram, Metrics, STATUSES, State, TRANSACTIONS};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// All of them, in the text format of Prometheus.
pub fn text(metrics: &Metrics, state: &State) -> String {
    let mut page = Page(String::new());
    page.gauge("build_info", "Always 1; the version is a label", [version()]);
    let started = state.affairs.started as f64;
    page.gauge("start_time_seconds", "When the server was started, since 1970", [plain(started)]);
    page.requests(metrics);
    page.counter("received_bytes_total", "Bytes of requests' bodies, decoded", &metrics.received);
    page.counter("sent_bytes_total", "Bytes of answers' bodies", &metrics.sent);
    page.counter("connections_total", "Connections accepted", &metrics.connections);
    let refused = "Connections turned away, for their address had too many";
    page.counter("connections_refused_total", refused, &metrics.refused);
    let made_room = "Connections that were asked to make room for others";
    page.counter("connections_made_room_total", made_room, &metrics.made_room);
    page.gauge("connections", "Connections that are open", [plain(state.connections as f64)]);
    let queues = state.queues.iter().map(|(name, length)| (format!("{{queue=\"{name}\"}}"), *length as f64));
    page.gauge("queue_length", "Jobs that wait for the database", queues);
    page.head("commit_group_size", "Writes that were committed together", "histogram");
    page.histogram("commit_group_size", "", &metrics.groups);
    page.head("commit_seconds", "How long a commit took, with its writes", "histogram");
    page.histogram("commit_seconds", "", &metrics.commits);
    page.head(
        "checkpoint_seconds",
        "How long the writer paused after a commit, for checkpoints",
        "histogram",
    );
    page.histogram("checkpoint_seconds", "", &metrics.rests);
    page.affairs(state);
    page.0
}

type Sample = (String, f64);

fn plain(value: f64) -> Sample {
    (String::new(), value)
}

fn version() -> Sample {
    (concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}").to_owned(), 1.0)
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Nothing is too long for memory.
        let _ = write!(self.0, "# HELP sync_server_{name} {help}.\n# TYPE sync_server_{name} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.0, "sync_server_{name}{labels} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: &AtomicU64) {
        self.head(name, help, "counter");
        self.line(name, "", value.load(Relaxed) as f64);
    }

    fn gauge(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = Sample>) {
        self.head(name, help, "gauge");
        samples.into_iter().for_each(|(labels, value)| self.line(name, &labels, value));
    }

    fn requests(&mut self, metrics: &Metrics) {
        let name = "requests_total";
        self.head(name, "Requests answered, by transaction and status", "counter");
        for (transaction, counts) in TRANSACTIONS.iter().zip(&metrics.requests) {
            for (status, count) in STATUSES.iter().zip(counts) {
                let count = count.load(Relaxed);
                if count > 0 {
                    let status = if *status == 0 { "other".to_owned() } else { status.to_string() };
                    let labels = format!("{{transaction=\"{transaction}\",status=\"{status}\"}}");
                    self.line(name, &labels, count as f64);
                }
            }
        }
        let name = "request_seconds";
        self.head(name, "From a request's head to its finished answer, by transaction", "histogram");
        for (transaction, latencies) in TRANSACTIONS.iter().zip(&metrics.latencies) {
            self.histogram(name, &format!("transaction=\"{transaction}\""), latencies);
        }
    }

    fn histogram<const N: usize>(&mut self, name: &str, label: &str, histogram: &Histogram<N>) {
        let (counts, all, sum) = histogram.look();
        let comma = if label.is_empty() { "" } else { "," };
        for (bound, count) in counts {
            self.line(&format!("{name}_bucket"), &format!("{{{label}{comma}le=\"{bound}\"}}"), count as f64);
        }
        self.line(&format!("{name}_bucket"), &format!("{{{label}{comma}le=\"+Inf\"}}"), all as f64);
        let labels = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
        self.line(&format!("{name}_sum"), &labels, sum);
        self.line(&format!("{name}_count"), &labels, all as f64);
    }

    fn affairs(&mut self, state: &State) {
        if let Some(backups) = &state.affairs.backups {
            let newest = backups.newest.map(|at| plain(at as f64));
            self.gauge("last_backup_timestamp_seconds", "When the newest scheduled backup was made", newest);
            let next = backups.next.map(|at| plain(at as f64));
            self.gauge("next_backup_timestamp_seconds", "When the next scheduled backup is due", next);
            let failed = f64::from(u8::from(backups.failure.is_some()));
            self.gauge("backup_failed", "1 where the last scheduled backup failed", [plain(failed)]);
        }
        if let Some(certificate) = &state.affairs.certificate {
            let until = certificate.until.map(|at| plain(at as f64));
            self.gauge("certificate_expiry_timestamp_seconds", "When the certificate ends", until);
            let next = certificate.next.map(|at| plain(at as f64));
            self.gauge("certificate_renewal_timestamp_seconds", "When another one is asked for", next);
            let failed = f64::from(u8::from(certificate.problem.is_some()));
            self.gauge(
                "certificate_problem",
                "1 where someone should look after the certificate",
                [plain(failed)],
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Affairs, Backups, Certificate, Transaction};
    use std::time::Duration;

    #[test]
    fn every_line_is_a_sample_of_what_was_declared_before_it() {
        let metrics = Metrics::default();
        metrics.answered(Transaction::AddVersion, 200, Duration::from_millis(3), (10, 0));
        metrics.answered(Transaction::Other, 599, Duration::from_secs(99), (0, 7));
        metrics.groups.counted(3);
        let backups = Backups { newest: Some(5), failure: Some((6, "why".to_owned())), next: Some(7) };
        let certificate = Certificate { until: Some(8), next: Some(9), problem: None };
        let affairs = Affairs { started: 1, backups: Some(backups), certificate: Some(certificate) };
        let state = State { connections: 2, queues: vec![("writes", 4)], affairs };
        let page = text(&metrics, &state);
        for expected in [
            "sync_server_requests_total{transaction=\"add_version\",status=\"200\"} 1\n",
            "sync_server_certificate_expiry_timestamp_seconds 8\n",
            "sync_server_certificate_problem 0\n",
            "sync_server_requests_total{transaction=\"other\",status=\"other\"} 1\n",
            "sync_server_request_seconds_bucket{transaction=\"add_version\",le=\"0.0025\"} 0\n",
            "sync_server_request_seconds_bucket{transaction=\"add_version\",le=\"0.005\"} 1\n",
            "sync_server_request_seconds_sum{transaction=\"add_version\"} 0.003\n",
            "sync_server_request_seconds_count{transaction=\"other\"} 1\n",
            "sync_server_received_bytes_total 10\n",
            "sync_server_queue_length{queue=\"writes\"} 4\n",
            "sync_server_commit_group_size_bucket{le=\"4\"} 1\n",
            "sync_server_commit_group_size_sum 3\n",
            "sync_server_last_backup_timestamp_seconds 5\n",
            "sync_server_backup_failed 1\n",
        ] {
            assert!(page.contains(expected), "{expected}in\n{page}");
        }
        let mut declared = "";
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                declared = rest.split(' ').next().expect("a name");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').expect("a value");
                assert!(name.starts_with(declared), "{line} after {declared}");
                value.parse::<f64>().expect("a number");
            }
        }
    }
}
