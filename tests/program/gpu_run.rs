//! `run.sh` of the GPU bundle (scripts/gpu-run) with programs that only say what they
//! were asked: which stages run, what they are told, and the exit code.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// A bundle of scripts. It has a GPU if the file `gpu` is there; its conformance fails
/// if `broken` is.
const DEVICE: &str = r#"#!/bin/sh
case $1 in
--info) [ -e gpu ] && echo 'a GPU' && exit 0; echo 'no usable CUDA device: no driver'; exit 1 ;;
--bench)
    if [ "$2" = --step ]; then echo steps; exit; fi
    echo "$KVFOLD_BENCH_CELLS $KVFOLD_COMMIT"
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

    /// Exit code and standard output. Programs in the bundle's folder are on the path.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("bash")
            .arg(self.path().join("run.sh"))
            .args(arguments)
            .env("OUT", self.path().join("out"))
            .env("KVFOLD_CUBLASLT", self.path())
            .env("PATH", format!("{}:{path}", self.path().display()))
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn log(&self, stage: &str) -> String {
        fs::read_to_string(self.path().join(format!("out/{stage}.log"))).unwrap()
    }
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
fn wrong_usage_is_told_apart() {
    for arguments in [&["--fast"][..], &["--only"], &["--only", "conformance,nonsense"]] {
        assert_eq!(Bundle::new(&["gpu"]).run(arguments).0, 64);
    }
}
