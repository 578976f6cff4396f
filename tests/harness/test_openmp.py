from harness.openmp import NO_SPIN, SHORT_SPIN, settle_waiting


def test_a_process_of_its_own_spins_shortly():
    environment = {}
    settle_waiting(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": SHORT_SPIN}


def test_a_worker_takes_back_the_spin_that_it_inherits():
    environment = {}
    settle_waiting(environment)
    environment["PYTEST_XDIST_WORKER"] = "gw0"
    settle_waiting(environment)
    assert environment["GOMP_SPINCOUNT"] == NO_SPIN


def test_what_the_user_sets_stays():
    mine = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "77", "PYTEST_XDIST_WORKER": "gw0"}
    before = dict(mine)
    settle_waiting(mine)
    assert mine == before
