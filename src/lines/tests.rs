use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use super::{LIMIT, Lines, WHOLE, whole_lines};

/// Far beyond what anything here takes.
const LONG: Duration = Duration::from_secs(20);

/// Lines to a pipe, and how many of them were told as lost.
fn piped() -> (Lines, BufReader<io::PipeReader>, Arc<AtomicU64>) {
    let (reader, writer) = io::pipe().unwrap();
    let lost = Arc::new(AtomicU64::new(0));
    let count = lost.clone();
    let told = move |lost| {
        count.fetch_add(lost, Ordering::SeqCst);
    };
    (Lines::start("lines", writer, told).unwrap(), BufReader::new(reader), lost)
}

fn line(number: usize) -> String {
    format!("line {number} {}\n", "x".repeat(number % 300))
}

#[test]
fn a_lone_line_comes_at_once_and_many_in_order() {
    let (lines, mut reader, lost) = piped();
    for number in 0..3 {
        assert!(lines.put(line(number).as_bytes()));
        let mut read = String::new();
        reader.read_line(&mut read).unwrap();
        assert_eq!(read, line(number));
    }
    let rest = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    (0..20_000).for_each(|number| assert!(lines.put(line(number).as_bytes())));
    assert!(lines.flush());
    drop(lines);
    // The pipe ends with the thread, so this shows that it ends too.
    assert_eq!(rest.join().unwrap(), (0..20_000).map(line).collect::<String>());
    assert_eq!(lost.load(Ordering::SeqCst), 0);
}

#[test]
fn many_threads_lose_nothing_and_cut_no_line() {
    let (lines, reader, _) = piped();
    let counted = std::thread::spawn(move || {
        let mut next = [0; 4];
        for line in reader.lines().map(Result::unwrap) {
            let (thread, number) = line.split_once(' ').unwrap();
            let expected = &mut next[thread.parse::<usize>().unwrap()];
            assert_eq!(number.parse(), Ok(*expected), "{line}");
            *expected += 1;
        }
        next
    });
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let lines = &lines;
            scope.spawn(move || {
                (0..5000).for_each(|number| assert!(lines.put(format!("{thread} {number}\n").as_bytes())))
            });
        }
    });
    drop(lines);
    assert_eq!(counted.join().unwrap(), [5000; 4]);
}

#[test]
fn an_output_that_nobody_reads_costs_lines_and_no_time() {
    let (reader, writer) = io::pipe().unwrap();
    let (mut reader, lost, way) =
        (BufReader::new(reader), Arc::new(AtomicU64::new(0)), Arc::new(OnceLock::<Lines>::new()));
    let (count, back) = (lost.clone(), way.clone());
    // As in the log, what tells of a loss is a line of the same way, for which there must be room.
    let told = move |lost| {
        let there_is_room = back.get().is_some_and(|lines| lines.put(&[[b'l'; 9_999].as_slice(), b"\n"].concat()));
        count.fetch_add(if there_is_room { lost } else { 0 }, Ordering::SeqCst);
    };
    let lines = way.get_or_init(|| Lines::start("lines", writer, told).unwrap());
    let text = [b'x'; 999].iter().chain(b"\n").copied().collect::<Vec<u8>>();
    let begun = Instant::now();
    let taken = (0..3 * LIMIT / text.len()).filter(|_| lines.put(&text)).count();
    // A pipe holds 64 KB beside what waits here.
    assert!((LIMIT - text.len()..=LIMIT + 1024 * 1024).contains(&(taken * text.len())), "{taken}");
    assert!(begun.elapsed() < LONG && !lines.flush());
    assert_eq!(lost.load(Ordering::SeqCst), 0, "there is no room yet");
    let mut read = vec![0; taken * text.len() + 10_000];
    reader.read_exact(&mut read).unwrap();
    assert!(lines.flush());
    assert_eq!(lost.load(Ordering::SeqCst), (3 * LIMIT / text.len() - taken) as u64);
    assert!(lines.put(b"after\n"));
    let mut after = String::new();
    reader.read_line(&mut after).unwrap();
    assert_eq!(after, "after\n");
}

/// An output that takes few bytes at a time, is not ready in between, and at last fails.
struct Odd {
    taken: mpsc::Sender<u8>,
    calls: usize,
    until: usize,
}

impl Write for Odd {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.calls += 1;
        match self.calls % 8 {
            _ if self.calls > self.until => Err(ErrorKind::StorageFull.into()),
            0 | 1 => Err(ErrorKind::WouldBlock.into()),
            2 => Err(ErrorKind::Interrupted.into()),
            few => {
                let part = &text[..few.min(text.len())];
                part.iter().for_each(|byte| self.taken.send(*byte).unwrap());
                Ok(part.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn odd_outputs_are_borne() {
    let (taken, read) = mpsc::channel();
    let lines = Lines::start("lines", Odd { taken, calls: 0, until: 100 }, |_| ()).unwrap();
    let text: String = (0..10).map(line).collect();
    lines.put(text.as_bytes());
    assert!(lines.flush());
    assert_eq!(read.try_iter().collect::<Vec<u8>>(), text.as_bytes());
    (0..1000).for_each(|number| assert!(lines.put(line(number).as_bytes())));
    assert!(lines.flush(), "what cannot be written is dropped");
}

#[test]
fn pieces_are_whole_lines() {
    let check = |lengths: &[usize], wanted: usize| {
        let text: Vec<u8> = lengths.iter().flat_map(|length| [vec![b'x'; length - 1], vec![b'\n']].concat()).collect();
        assert_eq!(whole_lines(&text), wanted, "{lengths:?}");
    };
    check(&[10], 10);
    check(&[WHOLE], WHOLE);
    check(&[WHOLE, 1], WHOLE);
    check(&[1000; 5], 4000);
    check(&[1, WHOLE, 1], 1);
    check(&[WHOLE + 1, 5], WHOLE + 1);
}
