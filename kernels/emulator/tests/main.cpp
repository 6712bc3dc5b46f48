// Tests of the emulated device: prints a line per case; the exit code says
// whether all went well. `measure` as the argument adds what things cost.
#include "emulator/tests/harness.h"

int failures = 0;

int main(int argc, char** argv) {
    test_numbers();
    test_right();
    test_wrong();
    if (argc > 1 && strcmp(argv[1], "measure") == 0) measure();
    printf("%d failed\n", failures);
    return failures ? 1 : 0;
}
