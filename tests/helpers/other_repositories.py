"""The files of two small repositories in other languages: C with make, JavaScript with node's test runner."""

C_LINE = 'test="make -s check" parser=tap'
C_FILES = {
    "Makefile": """CFLAGS = -O0 -Wall -I.
TESTS = build/test_numbers build/test_words

check: $(TESTS)
	@failed=0; for test in $(TESTS); do ./$$test || failed=1; done; exit $$failed

build/test_%: tests/test_%.c numbers.c words.c numbers.h words.h tests/tap.h
	@mkdir -p build
	@$(CC) $(CFLAGS) -o $@ $< numbers.c words.c
""",
    "numbers.h": "int clamp(int value, int low, int high);\nint gcd(int a, int b);\n",
    "numbers.c": """#include "numbers.h"

int clamp(int value, int low, int high) {
    if (value < low)
        return low;
    return value > high ? high : value;
}

int gcd(int a, int b) {
    while (b) {
        int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}
""",
    "words.h": "int count_words(const char *text);\n",
    "words.c": """#include "words.h"

int count_words(const char *text) {
    int count = 0, inside = 0;
    for (; *text; text++) {
        int is_space = *text == ' ' || *text == '\\t';
        count += !is_space && !inside;
        inside = !is_space;
    }
    return count;
}
""",
    "tests/tap.h": """#include <stdio.h>
static int number = 0, failed = 0;
static void check(const char *name, int claim) {
    failed += !claim;
    printf("%s %d - %s\\n", (claim) ? "ok" : "not ok", ++number, name);
}
#define CHECK(name, claim) check(name, claim)
#define DONE printf("1..%d\\n", number)
""",
    "tests/test_numbers.c": """#include "tests/tap.h"
#include "numbers.h"

int main(void) {
    CHECK("clamp keeps what lies within", clamp(5, 0, 10) == 5);
    CHECK("clamp raises what is too low", clamp(-1, 0, 10) == 0);
    CHECK("clamp lowers what is too high", clamp(11, 0, 10) == 10);
    CHECK("gcd of twelve and eighteen", gcd(12, 18) == 6);
    CHECK("gcd with nought", gcd(7, 0) == 7);
    DONE;
    return failed > 0;
}
""",
    "tests/test_words.c": """#include "tests/tap.h"
#include "words.h"

int main(void) {
    CHECK("no words in nothing", count_words("") == 0);
    CHECK("two words", count_words(" one\\ttwo ") == 2);
    DONE;
    return failed > 0;
}
""",
}
C_TESTS = frozenset(
    {
        *("clamp keeps what lies within", "clamp raises what is too low", "clamp lowers what is too high"),
        *("gcd of twelve and eighteen", "gcd with nought", "no words in nothing", "two words"),
    }
)

NODE_LINE = 'test="node --test --test-reporter=tap" parser=tap'
NODE_FILES = {
    "package.json": '{"name": "queue", "version": "1.0.0", "license": "MIT", "main": "queue.js"}\n',
    "queue.js": """class Queue {
  #items = [];
  add(item) {
    this.#items.push(item);
    return this;
  }
  take() {
    return this.#items.shift();
  }
  get size() {
    return this.#items.length;
  }
}
module.exports = { Queue };
""",
    "test/queue.test.js": """const { describe, test } = require('node:test');
const assert = require('node:assert');
const { Queue } = require('../queue.js');

describe('queue', () => {
  test('is empty at first', () => assert.equal(new Queue().size, 0));
  test('counts', () => assert.equal(new Queue().add(1).add(2).size, 2));
  test('gives back what came first', () => assert.equal(new Queue().add(1).add(2).take(), 1));
  test('has nothing to give when empty', () => assert.equal(new Queue().take(), undefined));
  test('gives back a single one', () => assert.equal(new Queue().add(3).take(), 3));
});
""",
}
