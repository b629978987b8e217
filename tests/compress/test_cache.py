from stochcl.compress.bytes import Cache


def test_what_was_used_least_lately_goes_first():
    cache = Cache(10)
    for key in "abc":
        cache.put(key, key.upper(), 4)
        assert cache.get("a") == "A"
    assert [cache.get(key) for key in "abc"] == ["A", None, "C"]


def test_the_newest_stays_whatever_its_size():
    cache = Cache(10)
    cache.put("a", 1, 4)
    cache.put("b", 2, 100)
    assert len(cache) == 1
    assert cache.get("b") == 2
    cache.put("c", 3, 4)
    assert [cache.get(key) for key in "bc"] == [None, 3]


def test_what_is_put_twice_counts_once():
    cache = Cache(10)
    for _ in range(5):
        cache.put("a", 1, 5)
    cache.put("b", 2, 5)
    assert len(cache) == 2
