//! `run.sh` of the GPU bundle (scripts/gpu-run) with programs that only say what they
//! were asked: which stages run, what they are told, and the exit code.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A bundle of scripts. It has a GPU if the file `gpu` is there; its conformance fails
/// if `broken` is, of every format takes a minute if `slow` is, and has no tests if
/// `untested` is.
const DEVICE: &str = r#"#!/bin/sh
case $1 in
--info) [ -e gpu ] && echo 'a GPU' && exit 0; echo 'no usable CUDA device: no driver'; exit 1 ;;
--bench)
    case $2 in
    --step) echo steps; exit ;;
    --roofs) echo "${KVFOLD_CUBLASLT:+named }roofs"; exit ;;
    --csv) echo "$*" | sed "s|$OUT/||"; echo "row of $KVFOLD_COMMIT" >"$3"; exit ;;
    esac
    echo "$KVFOLD_BENCH_CELLS $KVFOLD_COMMIT${3:+ $3}"
    mkdir -p "$KVFOLD_BENCH_OUT"
    echo 'roofs and goals' >"$KVFOLD_BENCH_OUT/summary.txt"
    echo '{}' >"$KVFOLD_BENCH_OUT/device.json" ;;
--test) echo 'tables hold' ;;
--exchange) echo "$*" | sed "s|$OUT/||"; echo numbers >"$2" ;;
esac
"#;
/// It has PyTorch if the file `torch` is there. Paths are said without the results' folder.
const PYTHON: &str = r#"#!/bin/sh
if [ "$1" = -c ]; then [ -e torch ]; exit; fi
echo "$*" | sed "s|$OUT/||g; s|$OUT|OUT|g"
case "$*" in
*--cells*) echo '{}' >"$OUT/peers.json" ;;
*gpu-report*) echo 'ratios and goals' >"$OUT/ratios.txt" ;;
esac
"#;
const PROFILER: &str = r#"#!/bin/sh
echo "$*" | sed "s|$OUT/||g"
[ "$1" = --version ] || : >"$OUT/step.sqlite"
"#;
const KERNELS: &str = r#"#!/bin/sh
echo "$*: $KVFOLD_CONFORMANCE_KINDS $KVFOLD_CONFORMANCE${KVFOLD_CUBLASLT:+ named}"
echo "$KVFOLD_CONFORMANCE_FORMATS $KVFOLD_CONFORMANCE_DIMS" >>first.log
[ -e untested ] && echo 'running 0 tests'
case $* in *every_format*) [ -e slow ] && sleep 60 ;; esac
[ ! -e broken ]
"#;

struct Bundle(TempDir);

impl Bundle {
    fn new(marks: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let run = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu-run");
        fs::copy(run, folder.path().join("run.sh")).unwrap();
        let bundle = Self(folder);
        bundle.script("device", DEVICE);
        bundle.script("kernels", KERNELS);
        bundle.script("python3", PYTHON);
        bundle.script("nsys", "#!/bin/sh\nexit 1\n");
        fs::write(bundle.path().join("COMMIT"), "abc123\n").unwrap();
        marks.iter().for_each(|mark| fs::write(bundle.path().join(mark), "").unwrap());
        bundle
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Programs in the bundle's folder are on the path.
    fn command(&self, arguments: &[&str]) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command
            .arg(self.path().join("run.sh"))
            .args(arguments)
            .env("OUT", self.path().join("out"))
            .env("KVFOLD_CUBLASLT", self.path())
            .env("PATH", format!("{}:{path}", self.path().display()));
        command
    }

    /// Exit code and standard output.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        self.run_within("", arguments)
    }

    /// The same, where `--first` has `seconds`.
    fn run_within(&self, seconds: &str, arguments: &[&str]) -> (i32, String) {
        let mut command = self.command(arguments);
        let output = command.env("KVFOLD_FIRST_SECONDS", seconds).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What became of each stage: its name and its verdict.
    fn stages(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.path().join("out/stages.txt")).unwrap();
        let verdict = |line: &str| {
            let at =
                ["skipped: ", "passed", "FAILED"].into_iter().filter_map(|v| line.find(v)).min();
            line[at.unwrap()..].to_owned()
        };
        text.lines().map(|l| (l.split(' ').next().unwrap().into(), verdict(l))).collect()
    }

    fn log(&self, stage: &str) -> String {
        fs::read_to_string(self.path().join(format!("out/{stage}.log"))).unwrap()
    }
}

#[test]
fn programs_come_out_of_their_archive_and_newer_ones_take_their_place() {
    let bundle = Bundle::new(&[]);
    fs::remove_file(bundle.path().join("python3")).unwrap();
    let pack = || {
        let make = "import tarfile; archive = tarfile.open('programs.tar.xz', 'w:xz'); \
                    archive.add('device'); archive.add('kernels'); archive.close()";
        let made = Command::new("python3").args(["-c", make]).current_dir(bundle.path()).status();
        assert!(made.unwrap().success());
    };
    pack();
    for program in ["device", "kernels"] {
        fs::remove_file(bundle.path().join(program)).unwrap();
    }
    let (code, said) = bundle.run(&[]);
    assert!(code == 2 && said.contains("no driver"), "{said}");

    let newer = format!("{DEVICE}# newer\n");
    bundle.script("device", &newer);
    pack();
    bundle.script("device", DEVICE);
    let archive = bundle.path().join("programs.tar.xz");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
    fs::File::options().append(true).open(&archive).unwrap().set_modified(later).unwrap();
    bundle.run(&[]);
    assert_eq!(fs::read_to_string(bundle.path().join("device")).unwrap(), newer);

    // What is no archive leaves nothing behind.
    fs::write(&archive, "torn").unwrap();
    fs::remove_file(bundle.path().join("device")).unwrap();
    let output = bundle.command(&[]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("programs.tar.xz could not be unpacked"), "{said}");
    let left = fs::read_dir(bundle.path()).unwrap().flatten();
    assert!(!left.into_iter().any(|at| at.file_name().to_string_lossy().starts_with("unpack")));
}

#[test]
fn without_a_gpu_it_says_so_and_runs_nothing() {
    let (code, said) = Bundle::new(&[]).run(&[]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("no driver") && said.contains("abc123"), "{said}");
    assert!(!said.contains("== "), "{said}");
}

#[test]
fn all_stages_pass_and_the_summary_comes_last() {
    let bundle = Bundle::new(&["gpu"]);
    let (code, said) = bundle.run(&[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("roofs and goals"), "{said}");
    let said_of = |test: &str| bundle.log(&format!("conformance-{test}"));
    let attention = said_of("attention_conformance");
    assert_eq!(attention, "attention_conformance::: cuda full named\n");
    assert_eq!(said_of("cache_kernels"), "cache_kernels::: cuda full named\n");
    assert_eq!(said_of("gemm"), "gemm:: --nocapture:   named\n");
    assert_eq!(bundle.log("bench"), "full abc123\n");
    assert!(said.contains("python3 has no PyTorch"), "{said}");
    assert!(said.contains("nsys does not run"), "{said}");
    assert_eq!(bundle.log("report"), "./gpu-report device.json --out OUT\n");
    bundle.run(&["--quick"]);
    assert!(said_of("attention_conformance").contains(": cuda fast"));
    assert_eq!(bundle.log("bench"), "quick abc123\n");
}

#[test]
fn peers_are_compared_where_there_are_any() {
    let bundle = Bundle::new(&["gpu", "torch"]);
    bundle.script("nsys", PROFILER);
    let (code, said) = bundle.run(&["--quick", "--only", "peers"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("the bench has measured nothing"), "{said}");
    let (code, said) = bundle.run(&["--only", "bench,peers"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(bundle.log("peers-exchange"), "--exchange exchange.safetensors\n");
    assert_eq!(bundle.log("peers-check"), "./gpu-peers --check exchange.safetensors\n");
    let timed = "./gpu-peers --cells device.json --out peers.json --seconds 480\n";
    assert_eq!(bundle.log("peers"), timed);
    assert!(bundle.log("profile").ends_with("--output step ./device --bench --step\n"));
    let report = "./gpu-report device.json --peers peers.json --profile step.sqlite --out OUT\n";
    assert_eq!(bundle.log("report"), report);
    let (summary, ratios) = (said.find("roofs and goals"), said.find("ratios and goals"));
    assert!(summary.is_some() && summary < ratios, "{said}");
    // The bench's results are kept for another comparison.
    let (code, said) = bundle.run(&["--quick", "--only", "peers"]);
    assert_eq!(code, 0, "{said}");
    assert!(bundle.log("peers").ends_with("--seconds 120\n"), "{said}");
}

#[test]
fn a_failed_stage_fails_the_run_and_not_the_next_stage() {
    let (code, said) = Bundle::new(&["gpu", "broken"]).run(&[]);
    assert_eq!(code, 1, "{said}");
    let line = |stage: &str| said.lines().find(|l| l.starts_with(stage)).unwrap().to_owned();
    assert!(line("conformance-attention").contains("FAILED"), "{said}");
    assert!(line("bench").contains("passed"), "{said}");
}

#[test]
fn a_sanitizer_that_finds_something_fails_and_one_that_cannot_run_is_skipped() {
    for (complaint, expected) in [("Device not supported", 0), ("Invalid __global__ write", 1)] {
        let bundle = Bundle::new(&["gpu"]);
        bundle.script("compute-sanitizer", &format!("#!/bin/sh\necho '{complaint}'\nexit 9\n"));
        let (code, said) = bundle.run(&["--quick", "--only", "sanitizer"]);
        assert_eq!(code, expected, "{said}");
        assert!(!said.contains("conformance"), "{said}");
    }
}

#[test]
fn the_bundle_can_be_checked_without_a_gpu() {
    let bundle = Bundle::new(&[]);
    let (code, said) = bundle.run(&["--emulated"]);
    assert_eq!(code, 0, "{said}");
    assert!(bundle.log("conformance-attention_conformance").contains(": emulated full"));
    assert_eq!(bundle.log("bench-check"), "tables hold\n");
    assert!(said.contains("python3 has no PyTorch"), "{said}");
    let bundle = Bundle::new(&["torch"]);
    assert_eq!(bundle.run(&["--emulated", "--only", "peers"]).0, 0);
    assert_eq!(bundle.log("peers-exchange"), "--exchange exchange.safetensors --emulated\n");
    assert_eq!(bundle.log("peers-check"), "./gpu-peers --check exchange.safetensors\n");
}

#[test]
fn the_first_minutes_have_an_order() {
    let bundle = Bundle::new(&["gpu", "torch"]);
    bundle.script("compute-sanitizer", "#!/bin/sh\nshift 4\nexec \"$@\"\n");
    let (code, said) = bundle.run(&["--first"]);
    assert_eq!(code, 0, "{said}");
    let names: Vec<_> = bundle.stages().into_iter().map(|(name, _)| name).collect();
    let order = [
        "subnormal",
        "conformance-d128",
        "sanitizer-memcheck",
        "roofs",
        "decode-16x32k",
        "decode-64x16k",
        "prefill",
        "decode-32-layers",
        "decode-mha",
        "decode-small",
        "model-step",
        "bench",
        "peers-exchange",
        "peers-check",
        "peers",
        "profile",
        "report",
    ];
    assert_eq!(names, order, "{said}");
    assert_eq!(bundle.log("subnormal"), "subnormal::: cuda  named\n");
    assert_eq!(
        bundle.log("conformance-d128"),
        "attention_conformance::every_format: cuda  named\n"
    );
    let chosen = fs::read_to_string(bundle.path().join("first.log")).unwrap();
    assert!(chosen.contains("f16,kivi2,kf2 128\n"), "{chosen}");
    assert_eq!(
        bundle.log("sanitizer-memcheck"),
        "--test-threads 1 sanitizer_cases::: cuda  named\n"
    );
    assert_eq!(bundle.log("roofs"), "named roofs\n");
    let decode = "--bench --csv first-decode-16x32k.csv --shape heads=32,kv_heads=8,d=128 \
                  --formats f16,kivi2,kf2 --batch 16 --lengths 32k\n";
    assert_eq!(bundle.log("decode-16x32k"), decode);
    assert!(bundle.log("prefill").contains("--lengths 8k,32k --q-len all\n"));
    assert_eq!(bundle.log("model-step"), "quick abc123 model/default\n");
    assert_eq!(bundle.log("bench"), "quick abc123\n");
    // Rows and summaries are said last; a line of each stage at once, too.
    let row = said.rfind("row of abc123").unwrap();
    assert!(row < said.find("roofs and goals").unwrap(), "{said}");
    assert!(said.find("\nsubnormal ").unwrap() < said.find("== roofs").unwrap(), "{said}");
}

#[test]
fn the_first_minutes_end_in_time() {
    let bundle = Bundle::new(&["gpu", "slow"]);
    let start = Instant::now();
    let (code, said) = bundle.run_within("16", &["--first"]);
    assert!(start.elapsed() < Duration::from_secs(16), "{:?}", start.elapsed());
    assert_eq!(code, 1, "{said}");
    let stages = bundle.stages();
    assert_eq!(stages[0], ("subnormal".into(), "passed".into()));
    // Ten seconds would be kept for a stage that has to be killed.
    let (name, stopped) = &stages[1];
    assert_eq!(name, "conformance-d128");
    let seconds = stopped.strip_prefix("FAILED: stopped after ").unwrap();
    let seconds: u64 = seconds.strip_suffix(" s").unwrap().parse().unwrap();
    assert!((1..=4).contains(&seconds), "{stopped}");
    let over = stages.iter().filter(|(_, verdict)| verdict == "skipped: the 16 s are over");
    assert!(over.count() >= 9, "{said}");
    assert!(!bundle.path().join("out/first-prefill.csv").exists());
}

#[test]
fn a_run_that_is_cut_off_leaves_what_came_before() {
    let bundle = Bundle::new(&["gpu", "slow"]);
    let mut run = bundle.command(&["--first"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !bundle.path().join("out/conformance-d128.log").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not get to the second stage");
        std::thread::sleep(Duration::from_millis(20));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    assert_eq!(bundle.stages(), [("subnormal".into(), "passed".into())]);
    // Nothing of it is left in the next run.
    fs::remove_file(bundle.path().join("slow")).unwrap();
    assert_eq!(bundle.run(&["--first"]).0, 0);
    assert_eq!(bundle.stages().iter().filter(|(name, _)| name == "subnormal").count(), 1);
}

#[test]
fn a_filter_that_fits_no_test_is_a_failure() {
    let bundle = Bundle::new(&["gpu", "untested"]);
    let (code, said) = bundle.run(&["--first"]);
    assert_eq!(code, 1, "{said}");
    let failed = ("subnormal".to_owned(), "FAILED: it has no such test".to_owned());
    assert_eq!(bundle.stages()[0], failed);
    // What is timed is timed all the same.
    assert!(bundle.stages().contains(&("roofs".into(), "passed".into())), "{said}");
}

#[test]
fn the_first_minutes_can_be_tried_without_a_gpu() {
    let bundle = Bundle::new(&[]);
    assert_eq!(bundle.run(&["--first"]).0, 2);
    let (code, said) = bundle.run(&["--first", "--emulated"]);
    assert_eq!(code, 0, "{said}");
    let names: Vec<_> = bundle.stages().into_iter().map(|(name, _)| name).collect();
    let order = [
        "subnormal",
        "conformance-d128",
        "sanitizer-cases",
        "roofs",
        "decode",
        "prefill",
        "bench-check",
    ];
    assert_eq!(names, order, "{said}");
    assert!(bundle.log("subnormal").contains(": emulated"));
    assert!(bundle.log("decode").contains(" --emulated "));
    assert!(said.contains("nothing is timed"), "{said}");
}

#[test]
fn wrong_usage_is_told_apart() {
    for arguments in [
        &["--fast"][..],
        &["--only"],
        &["--only", "conformance,nonsense"],
        &["--first", "--quick"],
        &["--first", "--only", "bench"],
    ] {
        assert_eq!(Bundle::new(&["gpu"]).run(arguments).0, 64);
    }
    assert_eq!(Bundle::new(&["gpu"]).run_within("12m", &["--first"]).0, 64);
}
