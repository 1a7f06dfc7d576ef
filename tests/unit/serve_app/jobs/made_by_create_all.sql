CREATE TABLE jobs (
    number INTEGER NOT NULL,
    id VARCHAR(36) NOT NULL,
    owner VARCHAR(64) NOT NULL,
    status VARCHAR(16) NOT NULL,
    model VARCHAR(64) NOT NULL,
    request TEXT NOT NULL,
    created_at FLOAT NOT NULL,
    started_at FLOAT,
    finished_at FLOAT,
    attempt INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    worker VARCHAR(128),
    lease_until FLOAT,
    cancel_requested INTEGER NOT NULL,
    stage VARCHAR(16) NOT NULL,
    progress FLOAT NOT NULL,
    error_code VARCHAR(32),
    error_message TEXT,
    made TEXT,
    PRIMARY KEY (number),
    UNIQUE (id)
);
CREATE INDEX jobs_by_status ON jobs (status, number);
CREATE INDEX jobs_by_end ON jobs (finished_at);
INSERT INTO jobs VALUES
    (1, 'running', 'anna', 'running', 'acestep-v15-turbo', '{"model": "acestep-v15-turbo", "seeds": [1]}',
     5.0, 6.0, NULL, 2, 2, 'w', 7.0, 0, 'plan', 0.2, NULL, NULL, NULL),
    (2, 'queued-1', 'anna', 'queued', 'acestep-v15-turbo', '{"model": "acestep-v15-turbo", "seeds": [1]}',
     10.0, NULL, NULL, 0, 0, NULL, NULL, 0, 'queued', 0.0, NULL, NULL, NULL),
    (3, 'queued-2', 'anna', 'queued', 'acestep-v15-turbo', '{"model": "acestep-v15-turbo", "seeds": [1]}',
     20.0, NULL, NULL, 0, 0, NULL, NULL, 0, 'queued', 0.0, NULL, NULL, NULL),
    (4, 'succeeded', 'anna', 'succeeded', 'acestep-v15-turbo', '{"model": "acestep-v15-turbo", "seeds": [1]}',
     1.0, 2.0, 3.0, 1, 1, 'w', NULL, 0, 'succeeded', 1.0, NULL, NULL,
     '{"tracks": [{"ref": "a.mp3", "audio_format": "mp3", "seconds": 1, "size": 7, "sha256": ""}], "plans": [], "dit_model": "acestep-v15-turbo", "lm_model": null, "seconds_by_stage": {}}'),
    (5, 'failed', 'bert', 'failed', 'acestep-v15-turbo', '{"model": "acestep-v15-turbo", "seeds": [1]}',
     1.0, 2.0, 3.0, 1, 1, 'w', NULL, 0, 'failed', 0.5, 'bad_audio', 'silence', NULL)
